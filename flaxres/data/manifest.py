"""Lists of images, read in place: `data.name='manifest'`.

`train.csv` is the split `train`. Its first line names the columns; `path` (or `file_name`) and
`label` are read. `train.jsonl` has an object with these keys in each line. Paths are relative to
the folder of the list or absolute, and lie within it: a list from elsewhere can't name any file of
this machine. Links within the folder are followed.

Labels are all names, or all whole numbers. The classes are the names in the split `train`, sorted,
or in all splits without that one. Numbers are the labels themselves; `classes.txt` beside the lists
names them. The records are in the order of the lines.

With `data.multi_label`, `labels` is read in place of `label`: in a CSV names or numbers with `|`
between them, in JSON a list. It may be empty.

The digest covers the classes, and path, label, size and time of change of every image; a copy must
therefore keep the times, as that of a folder that is read in place.
"""

import csv
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from flaxres.data import digests
from flaxres.data.in_place import ImageFiles
from flaxres.data.labels import class_names, numbered_sets
from flaxres.data.store import Split, Store
from flaxres.errors import InputError
from flaxres.paths import expanded

REMEDY = "repair that file or remove its line"
RULE = "the folder of lists such as train.csv and val.csv, with the columns path and label"
SUFFIXES = (".csv", ".jsonl")
PATHS = ("path", "file_name")
_NUMBER = re.compile(r"-?\d{1,9}")

SEPARATOR = "|"

Line = tuple[int, str, tuple[str | int, ...]]
"""Number, path and labels of a line."""


def open_manifest(source: str | None, multi_label: bool = False) -> Store:
    """Opens the lists of a folder, or one list.

    Labels that are numbers are checked by `flaxres.data.labels`, as those of every dataset.

    Args:
      source: the folder, or the list of a single split.
      multi_label: images have any number of labels.

    Raises:
      InputError: there is no list, a line lacks a path or a label, an image does not exist or lies
        outside of the folder, labels are names in one line and numbers in another, or a split has a
        class that `train` lacks.
    """
    root, lists = _lists(source)
    lines = {path.stem: list(_lines(path, multi_label)) for path in lists}
    for path in lists:
        if not lines[path.stem]:
            raise InputError(f"{str(path)!r} lists no image: remove it")
    numeric = _numeric(lists, lines)
    labels = {
        name: {label for *_, found in rows for label in found} for name, rows in lines.items()
    }
    if numeric:
        classes = class_names(root, max(int(label) for split in labels.values() for label in split))
    else:
        known = labels.get("train") or set().union(*labels.values())
        classes = tuple(sorted(map(str, known)))
    splits, facts = {}, ["manifest", *classes]
    for path in lists:
        rows = lines[path.stem]
        numbers = (
            [tuple(map(int, found)) for *_, found in rows]
            if numeric
            else _numbers(path, rows, classes)
        )
        splits[path.stem], more = _split(path, rows, numbers, classes, multi_label)
        facts += [path.stem, *more]
    return Store("manifest", root, classes, digests.words_digest(facts), splits, REMEDY)


def _lists(source: str | None) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """Returns the folder and its lists, by name."""
    if source is None:
        raise InputError(f"data.name='manifest' needs data.source: {RULE}")
    root = expanded(source)
    if root.is_file() and root.suffix in SUFFIXES:
        return root.parent, [root]
    if not root.is_dir():
        raise InputError(f"data.source={source!r} is no folder and no .csv or .jsonl: give {RULE}")
    lists = sorted(path for suffix in SUFFIXES for path in root.glob(f"*{suffix}"))
    lists = [path for path in lists if path.is_file() and not path.name.startswith(".")]
    if not lists:
        raise InputError(f"data.source={source!r} holds no .csv and no .jsonl: give {RULE}")
    stems = [path.stem for path in lists]
    for path in lists:
        if not re.fullmatch(r"\w+", path.stem):
            raise InputError(f"{str(path)!r} names no split: the rule is train.csv; rename it")
        if stems.count(path.stem) > 1:
            raise InputError(f"{str(path)!r}: split {path.stem!r} has two lists: keep one of them")
    return root, lists


def _lines(path: pathlib.Path, multi_label: bool) -> Iterator[Line]:
    """Iterates over the lines of a list."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in _rows(path, file, multi_label):
                image = next((row[name] for name in PATHS if row.get(name)), None)
                one: list[Any] = [row.get("label")]
                labels = _several(row.get("labels")) if multi_label else one
                if not isinstance(image, str) or labels is None or not all(map(_is_label, labels)):
                    raise _malformed(path, number, multi_label)
                yield number, image, tuple(labels)
    except InputError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{str(path)!r} can't be read ({reason}): write it again") from error


def _several(value: Any) -> list[Any] | None:
    """Returns the labels in a cell or an entry `labels`, None if it is neither."""
    if isinstance(value, str):
        return [label.strip() for label in value.split(SEPARATOR)] if value.strip() else []
    return value if isinstance(value, list) else None


def _is_label(label: Any) -> bool:
    """Returns True for a name or a whole number."""
    return (isinstance(label, str) and label != "") or (type(label) is int and abs(label) < 2**31)


def _rows(path: pathlib.Path, file: Any, multi_label: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """Iterates over the rows of a list, each with the number of its line."""
    if path.suffix == ".jsonl":
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    raise _malformed(path, number, multi_label)
                if number == 1:
                    _require_column(path, list(row), multi_label)
                yield number, row
        return
    reader = csv.DictReader(file, strict=True)
    names = list(reader.fieldnames or [])
    _require_column(path, names, multi_label)
    wanted = "labels" if multi_label else "label"
    if wanted not in names or not set(PATHS) & set(names):
        raise InputError(
            f"{str(path)!r} has the columns {', '.join(names) or 'none'}: the rule is path (or "
            f"file_name) and {wanted}, named in the first line"
        )
    for row in reader:
        yield reader.line_num, row


def _require_column(path: pathlib.Path, names: Sequence[str], multi_label: bool) -> None:
    """Refuses a list with single labels where each image has several, and the reverse."""
    wanted, other = ("labels", "label") if multi_label else ("label", "labels")
    if wanted not in names and other in names:
        raise InputError(
            f"{str(path)!r} has {other}, and data.multi_label={multi_label} reads {wanted}: set "
            f"data.multi_label={not multi_label}, or rename them"
        )


def _malformed(path: pathlib.Path, number: int, multi_label: bool) -> InputError:
    several = f"labels, names or whole numbers ({SEPARATOR} between them, in JSON a list)"
    wanted = several if multi_label else "a label, a name or a whole number"
    return InputError(
        f"line {number} of {str(path)!r}: the rule is a path and {wanted}; correct or remove it"
    )


def _numeric(lists: list[pathlib.Path], lines: dict[str, list[Line]]) -> bool:
    """Returns True if all labels are numbers, False if none is."""
    first: tuple[bool, pathlib.Path, int, str | int] | None = None
    for path in lists:
        for number, label in ((line[0], label) for line in lines[path.stem] for label in line[-1]):
            numeric = isinstance(label, int) or bool(
                path.suffix == ".csv" and _NUMBER.fullmatch(label)
            )
            first = first or (numeric, path, number, label)
            if numeric != first[0]:
                _, other, line, known = first
                raise InputError(
                    f"line {number} of {str(path)!r} has the label {label!r}, and line {line} "
                    f"of {str(other)!r} {known!r}: the rule is names alone, or whole numbers alone"
                )
    if first is None:
        raise InputError(
            f"no image in {str(lists[0].parent)!r} has a label: the rule is at least one; add "
            "labels"
        )
    return first[0]


def _numbers(
    path: pathlib.Path, lines: list[Line], classes: tuple[str, ...]
) -> list[tuple[int, ...]]:
    """Returns the labels of a split whose labels are names."""
    numbers = {name: number for number, name in enumerate(classes)}
    for number, _, labels in lines:
        for label in labels:
            if label not in numbers:
                raise InputError(
                    f"line {number} of {str(path)!r} has the class {label!r}, which is not in the "
                    "list of split 'train': add images of it there, or remove the line"
                )
    return [tuple(numbers[str(label)] for label in labels) for *_, labels in lines]


def _split(
    path: pathlib.Path,
    lines: list[Line],
    labels: list[tuple[int, ...]],
    classes: tuple[str, ...],
    multi_label: bool,
) -> tuple[Split, list[str]]:
    """Returns a split and the facts for its digest."""
    paths, facts, size, root = [], [], 0, os.path.abspath(path.parent)  # noqa: PTH100 (keeps links)
    for (number, image, _), found in zip(lines, labels, strict=True):
        place = pathlib.Path(os.path.normpath(os.path.join(root, image)))  # noqa: PTH118
        if not place.is_relative_to(root):
            raise InputError(
                f"line {number} of {str(path)!r}: {image!r} lies outside of {root!r}: the rule is "
                "images below the folder of the list; move the list, or link their folder into it"
            )
        try:
            status = place.stat()
        except (OSError, ValueError) as error:
            raise InputError(
                f"line {number} of {str(path)!r}: there is no image {str(place)!r}; correct or "
                "remove the line"
            ) from error
        if not place.is_file():
            raise InputError(f"line {number} of {str(path)!r}: {str(place)!r} is no file")
        size += status.st_size
        paths.append(os.fspath(place))
        label = ",".join(map(str, found))
        facts.append(f"{image}\0{label}\0{status.st_size}\0{status.st_mtime_ns}")
    sets: UInt8[np.ndarray, "sets classes"] | None = None
    if multi_label:
        known, sets = numbered_sets(
            labels, len(classes), lambda record: f"line {lines[record][0]} of {str(path)!r}"
        )
    else:
        known = np.asarray(labels, np.int64)[:, 0]
    records = ImageFiles(paths, [image for _, image, _ in lines], known)
    return Split(records, known, ((str(path), len(paths)),), size, sets), facts
