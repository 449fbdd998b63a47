"""Figures, tables and mistakes that follow from the outputs of an evaluation."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxres.report.outputs import Outputs
from flaxres.training import scores

# Mistakes that are listed, and the classes that are named for each.
MISTAKES, NAMED = 1000, 5
# Classes and pairs of classes that the summary names.
HARDEST, CONFUSED = 5, 10
TOPS = (1, 2, 3, 5, 10)

PER_CLASS = (
    *("class", "images", "predicted", "correct", "precision", "recall", "f1"),
    *("average_precision", "confidence", "most_confused_with", "confused"),
)


def figures(outputs: Outputs, per_class: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the scores of the whole split.

    Args:
      outputs: the outputs.
      per_class: the rows of `class_rows` for these outputs.
    """
    classes = outputs.probabilities.shape[1]
    counted = scores.class_scores(outputs.labels, outputs.predicted, classes)
    diagram = scores.calibration(outputs.confidence, outputs.right)
    precisions = np.array([row["average_precision"] for row in per_class])
    return {
        "examples": len(outputs.labels),
        "classes": classes,
        "top": {str(k): scores.top_k(outputs.rank, k) for k in TOPS if k < classes},
        "loss": float(outputs.loss.mean()),
        "brier": float(scores.brier(outputs.probabilities, outputs.labels).mean()),
        "ece": diagram.ece,
        "mce": diagram.mce,
        "balanced_accuracy": scores.macro(counted.recall, counted.images),
        "macro_precision": scores.macro(counted.precision, counted.images),
        "macro_f1": scores.macro(counted.f1, counted.images),
        "mean_average_precision": scores.macro(precisions, counted.images),
        "calibration": diagram.to_json(),
        "hardest": _hardest(per_class),
        "confused": _confused(outputs, [row["class"] for row in per_class]),
    }


def _hardest(per_class: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the classes with the lowest recall, without those that have no mistake."""
    rows = [row for row in per_class if row["correct"] < row["images"]]
    rows.sort(key=lambda row: row["recall"])
    return [{key: row[key] for key in ("class", "recall", "images")} for row in rows[:HARDEST]]


def _confused(outputs: Outputs, classes: Sequence[str]) -> list[list[Any]]:
    """Returns the most frequent mistakes: label, predicted class and the number of images."""
    wrong = ~outputs.right
    pairs = scores.confusion(outputs.labels[wrong], outputs.predicted[wrong]).tolist()
    pairs.sort(key=lambda pair: -pair[2])
    return [[classes[label], classes[other], count] for label, other, count in pairs[:CONFUSED]]


def class_rows(outputs: Outputs, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Returns a row of `PER_CLASS` for each class, in label order.

    `confidence` is the mean probability of the class over its images, and `confused` the number
    of its images that are predicted as `most_confused_with`.

    Args:
      outputs: the outputs.
      classes: the names of the classes.
    """
    counted = scores.class_scores(outputs.labels, outputs.predicted, len(classes))
    own = np.bincount(outputs.labels, outputs.of(outputs.labels), len(classes))
    confused = _most_confused(outputs)
    rows = []
    for i, name in enumerate(classes):
        other, count = confused.get(i, (None, 0))
        images = int(counted.images[i])
        rows.append(
            {
                **counted_row(name, counted, i),
                "average_precision": scores.average_precision(
                    outputs.labels == i, outputs.probabilities[:, i]
                ),
                "confidence": float(own[i] / images) if images else float("nan"),
                "most_confused_with": "" if other is None else classes[other],
                "confused": count,
            }
        )
    return rows


def counted_row(name: str, counted: scores.ClassScores, i: int) -> dict[str, Any]:
    """Returns the first entries of the row of class number `i`: its name, counts and scores."""
    counts = {key: int(getattr(counted, key)[i]) for key in ("images", "predicted", "correct")}
    values = {key: float(getattr(counted, key)[i]) for key in ("precision", "recall", "f1")}
    return {"class": name, **counts, **values}


def _most_confused(outputs: Outputs) -> dict[int, tuple[int, int]]:
    """Returns, for each class with mistakes, the class that is predicted most, and its count."""
    wrong = ~outputs.right
    pairs = scores.confusion(outputs.labels[wrong], outputs.predicted[wrong]).tolist()
    # Of several, the first in label order remains.
    pairs.sort(key=lambda pair: (pair[2], -pair[1]))
    return {label: (predicted, count) for label, predicted, count in pairs}


def mistakes(outputs: Outputs, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the images with the most confident wrong predictions, at most `MISTAKES`.

    Args:
      outputs: the outputs.
      classes: the names of the classes.

    Returns:
      For each the number of its record, its label, the predicted class with the confidence, the
      probability of the label, and the likeliest classes with their probabilities.
    """
    wrong = np.flatnonzero(~outputs.right)
    order = wrong[np.argsort(-outputs.confidence[wrong], kind="stable")][:MISTAKES]
    rows = []
    for i in order:
        row = outputs.probabilities[i]
        best = np.argsort(-row, kind="stable")[:NAMED]
        rows.append(
            {
                "record": int(outputs.records[i]),
                "label": classes[outputs.labels[i]],
                "predicted": classes[outputs.predicted[i]],
                "confidence": float(outputs.confidence[i]),
                "label_probability": float(row[outputs.labels[i]]),
                "top": [[classes[j], float(row[j])] for j in best],
            }
        )
    return rows
