"""The folder of a full evaluation: its JSON, tables and images, written and read."""

import csv
import json
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from flaxres.errors import writing_to
from flaxres.paths import replacing
from flaxres.training.metrics import finite

EVALUATION = "evaluation"
SUMMARY, CONFUSION, PER_CLASS = "evaluation.json", "confusion.csv", "per_class.csv"
MISTAKES, PICTURES = "mistakes.jsonl", "mistakes"
PAIRS = ("label", "predicted", "images")
# Images of at most this size are stored without loss; larger ones are shrunk to the second size.
LOSSLESS, LARGEST = 64, 224
QUALITY = 85


def clear(folder: pathlib.Path) -> None:
    """Creates the folder; removes the summary and the images of an earlier evaluation.

    A folder without a summary is not complete.

    Raises:
      InputError: the folder can't be written.
    """
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in (SUMMARY, CONFUSION):
            (folder / name).unlink(missing_ok=True)
        for path in (folder / PICTURES).glob("[0-9]*.*"):
            path.unlink()


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a file of JSON in one step."""
    with replacing(path) as part:
        part.write_text(json.dumps(finite(content), indent=2) + "\n", encoding="utf-8")


def write_lines(path: pathlib.Path, rows: Iterable[Any]) -> None:
    """Writes a file of JSON lines."""
    text = "".join(json.dumps(finite(row)) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def write_table(path: pathlib.Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file; floats get six decimals, and NaN is empty."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(value) for value in row] for row in rows)


def _cell(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return f"{value:.6f}" if math.isfinite(value) else ""


def write_picture(
    folder: pathlib.Path, number: int, pixels: UInt8[np.ndarray, "size size 3"]
) -> str:
    """Writes an image, and returns its path within the folder.

    Args:
      folder: the folder of the evaluation.
      number: of the image, for its name.
      pixels: the image.
    """
    (folder / PICTURES).mkdir(exist_ok=True)
    name = f"{PICTURES}/{number:03}.{'png' if len(pixels) <= LOSSLESS else 'jpg'}"
    image = Image.fromarray(pixels)
    image.thumbnail((LARGEST, LARGEST))
    image.save(folder / name, quality=QUALITY)  # PNG has no quality, and leaves it out
    return name
