"""Figures, tables and mistakes of an evaluation whose images have any number of labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from flaxres.report.outputs import LabelledOutputs
from flaxres.report.summary import HARDEST, MISTAKES, NAMED, counted_row
from flaxres.training import scores

# Classes whose probability is above this are predicted.
THRESHOLD = 0.5


def figures(outputs: LabelledOutputs, per_class: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the scores of the whole split.

    The calibration is that of all pairs of an image and a class: the probability is compared with
    the share of pairs in which the class is a label of the image. `micro_` scores count all such
    pairs together, `macro_` ones are means over the classes that have images. Top-1 is the share,
    of images that have a label, whose likeliest class is one.

    Args:
      outputs: the outputs.
      per_class: the rows of `class_rows` for these outputs.
    """
    labels, predicted = outputs.labels, _predicted(outputs)
    counted = _counted(labels, predicted)
    exact = outputs.probabilities.astype(np.float64)
    diagram = scores.calibration(exact.ravel(), labels.ravel())
    precisions = np.array([row["average_precision"] for row in per_class])
    hits, wanted, found = counted.correct.sum(), labels.sum(), predicted.sum()
    return {
        "multi_label": True,
        "examples": len(labels),
        "classes": labels.shape[1],
        "labels_per_image": float(labels.sum(1).mean()),
        "threshold": THRESHOLD,
        "top": {"1": scores.top_k(outputs.rank[labels.any(1)], 1)},
        "loss": float(outputs.loss.mean()),
        "brier": float(((exact - labels) ** 2).mean()),
        "ece": diagram.ece,
        "mce": diagram.mce,
        "exact_match": float((predicted == labels).all(1).mean()),
        "macro_precision": scores.macro(counted.precision, counted.images),
        "macro_recall": scores.macro(counted.recall, counted.images),
        "macro_f1": scores.macro(counted.f1, counted.images),
        "micro_precision": float(hits / found) if found else float("nan"),
        "micro_recall": float(hits / wanted) if wanted else float("nan"),
        "micro_f1": float(2 * hits / (found + wanted)) if found + wanted else float("nan"),
        "mean_average_precision": scores.macro(precisions, counted.images),
        "calibration": diagram.to_json(),
        "hardest": _hardest(per_class),
    }


def class_rows(outputs: LabelledOutputs, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Returns a row of `flaxres.report.summary.PER_CLASS` for each class, in label order.

    A class is confused with no other, since they don't exclude each other.

    Args:
      outputs: the outputs.
      classes: the names of the classes.
    """
    labels, probabilities = outputs.labels, outputs.probabilities
    counted = _counted(labels, _predicted(outputs))
    precisions = scores.average_precisions(labels, probabilities)
    own = (probabilities * labels).sum(0, dtype=np.float64)
    return [
        {
            **counted_row(name, counted, i),
            "average_precision": float(precisions[i]),
            "confidence": float(own[i] / counted.images[i]) if counted.images[i] else float("nan"),
            "most_confused_with": "",
            "confused": 0,
        }
        for i, name in enumerate(classes)
    ]


def mistakes(outputs: LabelledOutputs, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the images with the most confident wrong labels, at most `MISTAKES`.

    Args:
      outputs: the outputs.
      classes: the names of the classes.

    Returns:
      For each the number of its record, its labels, the likeliest class that is none of them with
      its probability, the lowest probability of a label, and the likeliest classes.
    """
    absent = np.where(outputs.labels, -1.0, outputs.probabilities)
    likeliest = absent.argmax(1)
    confidence = absent.max(1)
    wrong = np.flatnonzero(confidence > THRESHOLD)
    order = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]
    rows = []
    for i in order:
        row, present = outputs.probabilities[i], np.flatnonzero(outputs.labels[i]).tolist()
        rows.append(
            {
                "record": int(outputs.records[i]),
                "label": ", ".join(classes[j] for j in present) or "no class",
                "predicted": classes[likeliest[i]],
                "confidence": float(confidence[i]),
                "label_probability": float(row[present].min(initial=1.0)),
                "top": [
                    [classes[j], float(row[j])] for j in np.argsort(-row, kind="stable")[:NAMED]
                ],
            }
        )
    return rows


def _predicted(outputs: LabelledOutputs) -> Bool[np.ndarray, "n k"]:
    """Returns the classes that are predicted for each image."""
    return np.asarray(outputs.probabilities > THRESHOLD)


def _counted(
    labels: Bool[np.ndarray, "n k"], predicted: Bool[np.ndarray, "n k"]
) -> scores.ClassScores:
    """Counts the images, predictions and hits of each class."""
    return scores.ClassScores(
        images=labels.sum(0), predicted=predicted.sum(0), correct=(labels & predicted).sum(0)
    )


def _hardest(per_class: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the classes with the lowest average precision, without those that have 1."""
    rows = [row for row in per_class if row["images"] and row["average_precision"] < 1]
    rows.sort(key=lambda row: row["average_precision"])
    keys = ("class", "average_precision", "images")
    return [{key: row[key] for key in keys} for row in rows[:HARDEST]]
