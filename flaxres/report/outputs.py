"""Runs a network over an evaluation split and keeps what it predicts for each image."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer

from flaxres.errors import InputError
from flaxres.printing import say
from flaxres.training.evaluation import abstract_batch, evaluated_rows, evaluation_batches
from flaxres.training.run import Run
from flaxres.training.state import State

# The largest array of probabilities, bytes.
LARGEST = 4 << 30


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Predictions for the images of an evaluation split, each once, in the order of the records.

    Attributes:
      records: the record numbers.
      labels: the labels.
      rank: the number of classes that are at least as likely as the label, without the label.
      loss: the cross-entropy in nats.
      probabilities: the probability of each class.

    Examples:
      >>> zero = np.zeros(1, int)
      >>> outputs = Outputs(zero, zero, zero + 1, zero + 1.0, np.array([[0.3, 0.7]]))
      >>> outputs.predicted.tolist(), outputs.right.tolist(), outputs.confidence.tolist()
      ([1], [False], [0.7])
    """

    records: Integer[np.ndarray, " n"]
    labels: Integer[np.ndarray, " n"]
    rank: Integer[np.ndarray, " n"]
    loss: Float[np.ndarray, " n"]
    probabilities: Float[np.ndarray, "n k"]
    predicted: Integer[np.ndarray, " n"] = dataclasses.field(init=False)
    """The predicted classes. A tie counts against the label, as in the accuracy."""

    def __post_init__(self) -> None:
        likeliest = self.probabilities.argmax(1)
        tied = np.flatnonzero((likeliest == self.labels) & ~self.right)
        others = self.probabilities[tied]
        others[np.arange(len(tied)), self.labels[tied]] = -1
        likeliest[tied] = others.argmax(1)
        object.__setattr__(self, "predicted", np.where(self.right, self.labels, likeliest))

    @property
    def right(self) -> Bool[np.ndarray, " n"]:
        """The images whose label is the predicted class."""
        return np.asarray(self.rank == 0)

    @property
    def confidence(self) -> Float[np.ndarray, " n"]:
        """The probabilities of the predicted classes."""
        return self.of(self.predicted)

    def of(self, classes: Integer[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Returns the probability of one class for each image."""
        return np.take_along_axis(self.probabilities, classes[:, None], 1)[:, 0]


@dataclasses.dataclass(frozen=True)
class LabelledOutputs:
    """Predictions for images with any number of labels, in the order of the records.

    Attributes:
      records: the record numbers.
      labels: the classes that are labels of each image.
      rank: the number of classes that are no labels and at least as likely as the likeliest label.
      loss: the mean binary cross entropy of the classes in nats.
      probabilities: the probability of each class by itself.

    Examples:
      >>> labels, zero = np.array([[True, False]]), np.zeros(1, int)
      >>> LabelledOutputs(zero, labels, zero, zero + 0.5, np.array([[0.9, 0.4]])).labels.sum(1)
      array([1])
    """

    records: Integer[np.ndarray, " n"]
    labels: Bool[np.ndarray, "n k"]
    rank: Integer[np.ndarray, " n"]
    loss: Float[np.ndarray, " n"]
    probabilities: Float[np.ndarray, "n k"]


def collect(
    run: Run,
    state: State,
    classes: Sequence[int] | None = None,
    say: Callable[[str], None] = say,
) -> Outputs | LabelledOutputs:
    """Evaluates a state on the evaluation split of its run, and keeps the result of each image.

    Works on any number of devices and processes; each process gets all results.

    Args:
      run: the run.
      state: the state.
      classes: the network's classes that those of the split are; None where they are all.
      say: gets a line about each image that is skipped.

    Raises:
      InputError: the results need too much memory, no image could be decoded, or the network's
        output is not finite.
    """
    shapes = run.eval_rows(classes).lower(run.abstract_state().eval_variables, abstract_batch(run))
    program = shapes.compile()
    dtype = shapes.out_info["probabilities"].dtype
    _require_room(run, dtype.itemsize)
    joined = evaluated_rows(run, state, program, evaluation_batches(run, say))
    finite = np.isfinite(joined["probabilities"]).all(1)
    if not finite.all():
        raise InputError(
            f"the network's output is not finite for {(~finite).sum():,} of {len(finite):,} images "
            "(the training diverged): evaluate without --full, or an earlier checkpoint"
        )
    multi_label = run.config.data.multi_label
    return (LabelledOutputs if multi_label else Outputs)(
        records=joined["position"].astype(np.int64),
        labels=joined["label"].astype(bool) if multi_label else joined["label"],
        rank=joined["rank"],
        loss=joined["loss"].astype(np.float64),
        probabilities=joined["probabilities"],
    )


def _require_room(run: Run, itemsize: int) -> None:
    """Checks that the probabilities are at most `LARGEST` bytes."""
    images, classes = len(run.evaluation), len(run.evaluation.classes)
    if (size := images * classes * itemsize) > LARGEST:
        raise InputError(
            f"{images:,} images with {classes:,} classes have {size / 2**30:.0f} GiB of "
            f"probabilities, and the limit is {LARGEST >> 30}: evaluate a part, e.g. --data."
            f"eval-split '{run.config.data.eval_split.partition('[')[0]}[:10%]'"
        )
