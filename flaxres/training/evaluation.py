"""Exact evaluation: every example counts once, on any number of devices."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxres.data.loader import Loader
from flaxres.data.rows import evaluation_rows
from flaxres.errors import InputError
from flaxres.printing import say
from flaxres.training import scores
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
      mean_average_precision: mean over the classes of the average precision; only where images have
        any number of labels (`data.multi_label`). Top-1 and top-5 then are the shares, of images
        that have a label, of which one is among the likeliest classes, and the loss is the mean
        binary cross entropy of a class.

    Examples:
      >>> report = Report(top1=0.75, top5=None, loss=0.9, examples=4, step=10)
      >>> report.score, str(report)
      (0.75, 'top-1 75.00%')
    """

    top1: float
    top5: float | None
    loss: float
    examples: int
    step: int
    mean_average_precision: float | None = None

    @property
    def score(self) -> float:
        """The figure by which checkpoints are compared: the mean average precision, or top-1."""
        precision = self.mean_average_precision
        return self.top1 if precision is None else precision

    def __str__(self) -> str:
        top1 = f"top-1 {100 * self.top1:.2f}%"
        if self.mean_average_precision is None:
            return top1
        return f"mean average precision {100 * self.mean_average_precision:.2f}%, {top1}"


class Evaluator:
    """Evaluates states of a run on its evaluation split.

    Compiles the step once. Where the dataset is resident, the batches stay on the devices.

    Args:
      run: the run.
      say: gets a line about each image that is skipped.
    """

    def __init__(self, run: Run, say: Callable[[str], None] = say) -> None:
        self.run, self.say = run, say
        self.kept: list[Any] | None = None
        self._compiling: Future[Any] | None = None

    def begin(self) -> None:
        """Starts to compile the step in another thread, in the first steps of a training.

        One of several processes compiles it at once: all must compile their programs in one order.
        """
        if jax.process_count() > 1:
            self.compiled  # noqa: B018
            return
        thread = ThreadPoolExecutor(1, "flaxres-evaluation")
        self._compiling = thread.submit(self._compile)
        thread.shutdown(wait=False)

    def check(self) -> None:
        """Raises the error of a compilation that failed, long before the first evaluation."""
        if self._compiling is not None and self._compiling.done():
            self._compiling.result()

    @functools.cached_property
    def compiled(self) -> Any:
        """The compiled step."""
        return self._compile() if self._compiling is None else self._compiling.result()

    def _compile(self) -> Any:
        variables = self.run.abstract_state().eval_variables
        step = self.run.eval_rows() if self.run.config.data.multi_label else self.run.eval_step()
        return step.lower(variables, abstract_batch(self.run)).compile()

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
        if self.run.config.data.multi_label:
            return _multi_label_report(self.run, state, self.compiled, self.batches())
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


def _multi_label_report(
    run: Run, state: State, program: Callable[..., Any], batches: Iterable[Any]
) -> Report:
    """Returns the result of an evaluation of images with any number of labels.

    Raises:
      InputError: no image could be decoded.
    """
    rows = evaluated_rows(run, state, program, batches)
    labels = rows["label"].astype(bool)
    rank = rows["rank"][labels.any(1)]
    if not len(rank):
        raise InputError(
            f"no image of {run.evaluation.name} has a label: choose another data.eval_split"
        )
    # A network whose output is not finite finds nothing: all classes of an image tie.
    found = np.nan_to_num(rows["probabilities"], nan=-1.0)
    precisions = scores.average_precisions(labels, found)
    return Report(
        top1=scores.top_k(rank, 1),
        top5=scores.top_k(rank, 5) if labels.shape[1] > 5 else None,
        loss=float(rows["loss"].astype(np.float64).mean()),
        examples=len(labels),
        step=int(state.step),
        mean_average_precision=scores.macro(precisions, labels.sum(0)),
    )


def evaluated_rows(
    run: Run, state: State, program: Callable[..., Any], batches: Iterable[Any]
) -> dict[str, np.ndarray]:
    """Returns the rows of `eval_rows` of all images that could be decoded, in their order.

    Works on any number of devices and processes; each process gets all rows.

    Args:
      run: the run.
      state: the state.
      program: the compiled `run.eval_rows()`.
      batches: of the evaluation split.

    Raises:
      InputError: no image could be decoded.
    """
    kept: list[dict[str, Any]] = []
    for batch in batches:
        found = program(state.eval_variables, batch)
        rows = {name: np.asarray(value) for name, value in found.items()}
        # Rows of padding, and of images that can't be decoded, have weight 0.
        counts = rows.pop("weight") > 0
        kept.append({name: value[counts] for name, value in rows.items()})
    joined = {name: np.concatenate([rows[name] for rows in kept]) for name in kept[0]}
    if not len(joined["label"]):
        raise undecodable(run)
    return joined


def evaluation_batches(run: Run, say: Callable[[str], None] = say) -> Iterator[Any]:
    """Yields the batches of the evaluation split, every record once, in order.

    Args:
      run: the run.
      say: gets a line about each image that is skipped.
    """
    data, batch_size = run.config.data, run.config.train.eval_batch_size
    rows = evaluation_rows(len(run.evaluation), batch_size, evaluation_transform(data))
    speed = run.speed(len(run.evaluation))
    with Loader(run.evaluation, rows, split(run.mesh), speed, data.bad_images, say) as loader:
        yield from loader


def undecodable(run: Run) -> InputError:
    """Returns the error for an evaluation split of which no image could be decoded."""
    return InputError(
        f"no image of {run.evaluation.name} could be decoded: prepare the dataset again"
    )


def label_shape(run: Run, count: int) -> tuple[tuple[int, ...], Any]:
    """Returns the shape and the dtype of the labels of `count` images."""
    if run.config.data.multi_label:
        return (count, len(run.train.classes)), jnp.uint8
    return (count,), jnp.int32


def abstract_batch(run: Run) -> dict[str, Any]:
    """Returns the shapes, dtypes and shardings of an evaluation batch."""
    count, size = run.config.train.eval_batch_size, run.config.data.eval_size
    shapes = {
        "image": ((count, size, size, 3), jnp.uint8),
        "label": label_shape(run, count),
        "position": ((count,), jnp.uint32),
        "weight": ((count,), jnp.float32),
    }
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=split(run.mesh))
        for name, (shape, dtype) in shapes.items()
    }
