"""Accuracy by ImageNet's reassessed labels, "ReaL".

Each validation image has the set of all labels that are right for it (Beyer et al. 2020, "Are we
done with ImageNet?").
"""

import json
import os
import re
from collections.abc import Sequence
from typing import Any

from flaxres.data.source import Source
from flaxres.errors import InputError
from flaxres.paths import expanded

# The name of a validation image, e.g. ILSVRC2012_val_00000293.JPEG, ends with its number from 1.
NUMBER = re.compile(r"(\d{8})\.\w+$")


def read_labels(path: str | os.PathLike[str], classes: int) -> list[list[int]]:
    """Reads `real.json`: for each validation image, in order, a list of right labels.

    Args:
      path: the file.
      classes: the number of classes.

    Raises:
      InputError: the file can't be read or has another form.
    """
    try:
        labels = json.loads(expanded(path).read_text(encoding="utf-8"))
        for row in labels:
            if not all(isinstance(label, int) and 0 <= label < classes for label in row):
                raise ValueError(f"{row!r} are no labels below {classes}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"--real {str(path)!r} can't be read ({error}): give real.json of Beyer et al. 2020, a "
            "list of labels for each validation image"
        ) from error
    return list(labels)


def reassessed(
    labels: Sequence[Sequence[int]],
    source: Source,
    records: Sequence[int],
    predicted: Sequence[int],
) -> dict[str, Any]:
    """Returns the accuracy by sets of labels: images whose set is empty don't count.

    Args:
      labels: those of `read_labels`.
      source: gives the names of the files, by which the images are found in `labels`.
      records: the record of each prediction.
      predicted: the predicted classes.

    Returns:
      The accuracy and the number of images that count.

    Raises:
      InputError: a file is not called like a validation image, or no image has a label.

    Examples:
      >>> files = [{"file_name": f"ILSVRC2012_val_0000000{i}.JPEG"} for i in (3, 1, 2)]
      >>> source = Source("val", "val", ("cat", "dog"), "", files, "image", "label", ())
      >>> reassessed([[0, 1], [0], []], source, [0, 1, 2], [1, 1, 1])
      {'accuracy': 0.5, 'examples': 2}
    """
    right, counted = 0, 0
    for record, prediction in zip(records, predicted, strict=True):
        name = source.file_name(record)
        number = NUMBER.search(name)
        if number is None or not 1 <= int(number[1]) <= len(labels):
            raise InputError(
                f"--real: {source.name} record {record} ({name!r}) is not called like one of "
                f"ImageNet's {len(labels):,} validation images: ILSVRC2012_val_00000001.JPEG"
            )
        if possible := labels[int(number[1]) - 1]:
            counted += 1
            right += prediction in possible
    if not counted:
        raise InputError(f"--real: no image of {source.name} has a reassessed label")
    return {"accuracy": right / counted, "examples": counted}
