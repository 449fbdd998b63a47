"""The part of a confusion matrix that a page shows."""

import collections
import dataclasses

from flaxres.report.runs import Evaluation

# Rows and columns; of more classes, those with the most mistakes are shown.
LARGEST = 30


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A square part of a confusion matrix.

    Attributes:
      classes: the names of its rows and columns, in label order.
      totals: the number of images of each class, in all columns.
      counts: the number of images by label and predicted class.
      hidden: the number of classes that are left out.
    """

    classes: list[str]
    totals: list[int]
    counts: list[list[int]]
    hidden: int


def matrix(evaluation: Evaluation, largest: int = LARGEST) -> Matrix:
    """Returns the confusions between the classes with the most mistakes.

    A mistake counts for its label and for the predicted class.

    Args:
      evaluation: gives the confusions of all classes.
      largest: the number of rows and columns.
    """
    wrong: collections.Counter[str] = collections.Counter()
    for label, predicted, count in evaluation.pairs:
        if label != predicted:
            wrong[label] += count
            wrong[predicted] += count
    names = [str(row["class"]) for row in evaluation.classes]
    chosen = set(sorted(names, key=lambda name: -wrong[name])[:largest])
    kept = [name for name in names if name in chosen]
    place = {name: i for i, name in enumerate(kept)}
    counts = [[0] * len(kept) for _ in kept]
    totals = [0] * len(kept)
    for label, predicted, count in evaluation.pairs:
        if label in place:
            totals[place[label]] += count
            if predicted in place:
                counts[place[label]][place[predicted]] = count
    return Matrix(kept, totals, counts, len(names) - len(kept))
