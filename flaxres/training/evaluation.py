"""Exact evaluation: every example counts once, on any number of devices."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from flaxres.data.loader import Loader
from flaxres.data.rows import evaluation_rows
from flaxres.errors import InputError
from flaxres.printing import say
from flaxres.training.mesh import split
from flaxres.training.run import Run, evaluation_transform
from flaxres.training.state import State


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of an evaluation.

    Attributes:
      top1: accuracy in [0, 1].
      top5: accuracy in [0, 1]; None for five classes or fewer.
      loss: mean cross-entropy in nats.
      examples: the number of examples, each counted once.
      step: the step of the state.

    Examples:
      >>> Report(top1=0.75, top5=None, loss=0.9, examples=4, step=10).top1
      0.75
    """

    top1: float
    top5: float | None
    loss: float
    examples: int
    step: int


class Evaluator:
    """Evaluates states of a run on its evaluation split.

    Compiles the step once, before the first training step. Where the dataset is resident, the
    batches stay on the devices.

    Args:
      run: the run.
      say: gets a line about each image that is skipped.
    """

    def __init__(self, run: Run, say: Callable[[str], None] = say) -> None:
        self.run, self.say = run, say
        self.kept: list[Any] | None = None
        variables = run.abstract_state().eval_variables
        self.compiled = run.eval_step().lower(variables, abstract_batch(run)).compile()

    def batches(self) -> Iterator[Any]:
        """Yields the batches of the evaluation split."""
        if self.kept is not None:
            yield from self.kept
            return
        batches = evaluation_batches(self.run, self.say)
        if not self.run.config.data.resident:
            yield from batches
            return
        self.kept = list(batches)
        yield from self.kept

    def __call__(self, state: State) -> Report:
        """Evaluates a state.

        Raises:
          InputError: no image could be decoded.
        """
        sums: dict[str, Any] = {}
        for batch in self.batches():
            part = self.compiled(state.eval_variables, batch)
            sums = {key: sums[key] + value for key, value in part.items()} if sums else part
        totals = {key: float(value) for key, value in sums.items()}
        if not (examples := round(totals["examples"])):
            raise undecodable(self.run)
        has_top5 = len(self.run.evaluation.classes) > 5
        return Report(
            top1=totals["top1"] / examples,
            top5=totals["top5"] / examples if has_top5 else None,
            loss=totals["loss"] / examples,
            examples=examples,
            step=int(state.step),
        )


def evaluation_batches(run: Run, say: Callable[[str], None] = say) -> Iterator[Any]:
    """Yields the batches of the evaluation split, every record once, in order.

    Args:
      run: the run.
      say: gets a line about each image that is skipped.
    """
    data, batch_size = run.config.data, run.config.train.eval_batch_size
    rows = evaluation_rows(len(run.evaluation), batch_size, evaluation_transform(data))
    with Loader(run.evaluation, rows, split(run.mesh), run.speed, data.bad_images, say) as loader:
        yield from loader


def undecodable(run: Run) -> InputError:
    """Returns the error for an evaluation split of which no image could be decoded."""
    return InputError(
        f"no image of {run.evaluation.name} could be decoded: prepare the dataset again"
    )


def abstract_batch(run: Run) -> dict[str, Any]:
    """Returns the shapes, dtypes and shardings of an evaluation batch."""
    count, size = run.config.train.eval_batch_size, run.config.data.eval_size
    shapes = {
        "image": ((count, size, size, 3), jnp.uint8),
        "label": ((count,), jnp.int32),
        "position": ((count,), jnp.uint32),
        "weight": ((count,), jnp.float32),
    }
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=split(run.mesh))
        for name, (shape, dtype) in shapes.items()
    }
