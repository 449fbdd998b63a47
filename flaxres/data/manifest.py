"""Lists of images, read in place: `data.name='manifest'`.

`train.csv` is the split `train`. Its first line names the columns; `path` (or `file_name`) and
`label` are read. `train.jsonl` has an object with these keys in each line. Paths are relative to
the folder of the list or absolute, and lie within it: a list from elsewhere can't name any file of
this machine. Links within the folder are followed.

Labels are all names, or all whole numbers. The classes are the names in the split `train`, sorted,
or in all splits without that one. Numbers are the labels themselves; `classes.txt` beside the lists
names them. The records are in the order of the lines.

The digest covers the classes, and path, label, size and time of change of every image; a copy must
therefore keep the times, as that of a folder that is read in place.
"""

import csv
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from flaxres.data import digests
from flaxres.data.in_place import ImageFiles
from flaxres.data.labels import class_names
from flaxres.data.store import Split, Store
from flaxres.errors import InputError
from flaxres.paths import expanded

REMEDY = "repair that file or remove its line"
RULE = "the folder of lists such as train.csv and val.csv, with the columns path and label"
SUFFIXES = (".csv", ".jsonl")
PATHS = ("path", "file_name")
_NUMBER = re.compile(r"-?\d{1,9}")

Line = tuple[int, str, str | int]
"""Number, path and label of a line."""


def open_manifest(source: str | None) -> Store:
    """Opens the lists of a folder, or one list.

    Labels that are numbers are checked by `flaxres.data.labels`, as those of every dataset.

    Args:
      source: the folder, or the list of a single split.

    Raises:
      InputError: there is no list, a line lacks a path or a label, an image does not exist or lies
        outside of the folder, labels are names in one line and numbers in another, or a split has a
        class that `train` lacks.
    """
    root, lists = _lists(source)
    lines = {path.stem: list(_lines(path)) for path in lists}
    for path in lists:
        if not lines[path.stem]:
            raise InputError(f"{str(path)!r} lists no image: remove it")
    numeric = _numeric(lists, lines)
    labels = {name: [label for *_, label in rows] for name, rows in lines.items()}
    if numeric:
        numbers = {name: [int(label) for label in split] for name, split in labels.items()}
        classes = class_names(root, max(max(split) for split in numbers.values()))
    else:
        known = labels.get("train") or [label for split in labels.values() for label in split]
        classes = tuple(sorted(set(map(str, known))))
        numbers = {path.stem: _numbers(path, lines[path.stem], classes) for path in lists}
    splits, facts = {}, ["manifest", *classes]
    for path in lists:
        splits[path.stem], more = _split(path, lines[path.stem], numbers[path.stem])
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


def _lines(path: pathlib.Path) -> Iterator[Line]:
    """Iterates over the lines of a list."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in _rows(path, file):
                image = next((row[name] for name in PATHS if row.get(name)), None)
                label: Any = row.get("label")
                named = isinstance(label, str) and label != ""
                numbered = type(label) is int and abs(label) < 2**31
                if not isinstance(image, str) or not (named or numbered):
                    raise _malformed(path, number)
                yield number, image, label
    except (OSError, ValueError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{str(path)!r} can't be read ({reason}): write it again") from error


def _rows(path: pathlib.Path, file: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Iterates over the rows of a list, each with the number of its line."""
    if path.suffix == ".jsonl":
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    raise _malformed(path, number)
                yield number, row
        return
    reader = csv.DictReader(file, strict=True)
    names = reader.fieldnames or []
    if "label" not in names or not set(PATHS) & set(names):
        raise InputError(
            f"{str(path)!r} has the columns {', '.join(names) or 'none'}: the rule is path (or "
            "file_name) and label, named in the first line"
        )
    for row in reader:
        yield reader.line_num, row


def _malformed(path: pathlib.Path, number: int) -> InputError:
    return InputError(
        f"line {number} of {str(path)!r}: the rule is a path and a label, a name or a whole "
        "number; correct or remove it"
    )


def _numeric(lists: list[pathlib.Path], lines: dict[str, list[Line]]) -> bool:
    """Returns True if all labels are numbers, False if none is."""
    first: tuple[bool, pathlib.Path, Line] | None = None
    for path in lists:
        for line in lines[path.stem]:
            label = line[-1]
            numeric = isinstance(label, int) or bool(
                path.suffix == ".csv" and _NUMBER.fullmatch(label)
            )
            first = first or (numeric, path, line)
            if numeric != first[0]:
                _, other, (number, _, known) = first
                raise InputError(
                    f"line {line[0]} of {str(path)!r} has the label {label!r}, and line {number} "
                    f"of {str(other)!r} {known!r}: the rule is names alone, or whole numbers alone"
                )
    assert first is not None
    return first[0]


def _numbers(path: pathlib.Path, lines: list[Line], classes: tuple[str, ...]) -> list[int]:
    """Returns the labels of a split whose labels are names."""
    numbers = {name: number for number, name in enumerate(classes)}
    for number, _, label in lines:
        if label not in numbers:
            raise InputError(
                f"line {number} of {str(path)!r} has the class {label!r}, which is not in the list "
                "of split 'train': add images of it there, or remove the line"
            )
    return [numbers[str(label)] for *_, label in lines]


def _split(path: pathlib.Path, lines: list[Line], labels: list[int]) -> tuple[Split, list[str]]:
    """Returns a split and the facts for its digest."""
    paths, facts, size, root = [], [], 0, os.path.abspath(path.parent)  # noqa: PTH100 (keeps links)
    for (number, image, _), label in zip(lines, labels, strict=True):
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
        facts.append(f"{image}\0{label}\0{status.st_size}\0{status.st_mtime_ns}")
    known = np.asarray(labels, np.int64)
    records = ImageFiles(paths, [image for _, image, _ in lines], known)
    return Split(records, known, ((str(path), len(paths)),), size), facts
