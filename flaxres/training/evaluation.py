"""Exact evaluation: every example once, on any number of devices."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from flaxres.data import decode
from flaxres.data.loader import Loader, note
from flaxres.data.rows import evaluation_rows
from flaxres.errors import InputError
from flaxres.training.mesh import split
from flaxres.training.run import Run
from flaxres.training.state import State
from flaxres.training.steps import compiled_eval_step


@dataclasses.dataclass(frozen=True)
class Report:
    """Of an evaluation: accuracies in [0, 1], mean loss in nats, and how many examples were counted, each once."""

    top1: float
    top5: float | None
    loss: float
    examples: int
    step: int


class Evaluator:
    """Compiled once, before the first step; its batches stay on the devices where the dataset is resident."""

    def __init__(self, run: Run, say: Callable[[str], None] = note) -> None:
        self.run, self.say = run, say
        self.kept: list[Any] | None = None
        step = compiled_eval_step(run.config, run.model, run.mesh)
        self.compiled = step.lower(run.abstract_state().answer, abstract_batch(run)).compile()

    def batches(self) -> Iterator[Any]:
        data, run = self.run.config.data, self.run
        if self.kept is not None:
            yield from self.kept
            return
        transform = decode.CentreCrop(data.eval_size, data.eval_resize, data.interpolation)
        rows = evaluation_rows(len(run.evaluation), run.config.train.eval_batch_size, transform)
        with Loader(
            run.evaluation, rows, split(run.mesh), run.speed, data.bad_images, self.say
        ) as loader:
            if not data.resident:
                yield from loader
                return
            self.kept = list(loader)
        yield from self.kept

    def __call__(self, state: State) -> Report:
        sums: dict[str, Any] = {}
        for batch in self.batches():
            part = self.compiled(state.answer, batch)
            sums = {key: sums[key] + value for key, value in part.items()} if sums else part
        totals = {key: float(value) for key, value in sums.items()}
        if not (examples := round(totals["examples"])):
            raise InputError(
                f"no image of {self.run.evaluation.name} could be decoded: prepare the dataset again"
            )
        top5 = totals["top5"] / examples if len(self.run.evaluation.classes) > 5 else None
        return Report(
            totals["top1"] / examples, top5, totals["loss"] / examples, examples, int(state.step)
        )


def abstract_batch(run: Run) -> dict[str, Any]:
    """The shapes of one evaluation batch."""
    count, size = run.config.train.eval_batch_size, run.config.data.eval_size
    shapes = {
        "image": ((count, size, size, 3), jnp.uint8),
        "label": ((count,), jnp.int32),
        "position": ((count,), jnp.uint32),
    }
    shapes["weight"] = ((count,), jnp.float32)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=split(run.mesh))
        for name, (shape, dtype) in shapes.items()
    }
