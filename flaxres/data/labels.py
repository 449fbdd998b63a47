"""Checks of the labels of every kind of dataset, each the number of a class; names of classes."""

import concurrent.futures
import itertools
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Int64, UInt8

from flaxres.data.source import Source
from flaxres.errors import InputError

# Up to so many records are all read when a run starts; of more, a sample of SAMPLE is read.
ALL, SAMPLE = 4096, 512
# Files beside a dataset that name its classes.
CLASSES = ("classes.txt",)
# The largest label that is its own name. A damaged label would otherwise name millions of classes.
LARGEST = 999_999


def require_label(source: Source, record: int, label: int) -> None:
    """Refuses a label that is not the number of a class.

    Args:
      source: the split.
      record: number of the record, for the message.
      label: its label.

    Raises:
      InputError: the label is negative, or not below the number of classes.
    """
    if not 0 <= label < source.label_range:
        raise InputError(
            f"{source.describe(record)} has label {label}: the rule is 0 to "
            f"{source.label_range - 1}, the numbers of its classes; choose a labelled split, or "
            f"{source.remedy} with correct labels"
        )


def require_labels(source: Source) -> None:
    """Refuses a split with labels that are not numbers of classes, before a run starts.

    All labels are checked where they are known. Otherwise all records of small splits are read, and
    an evenly spaced sample of large ones. The loader calls `require_label` for every record that it
    decodes.

    Args:
      source: the split.

    Raises:
      InputError: there is such a label; the message gives the first, and their number.
    """
    size = len(source)
    every = source.labels is not None or size <= ALL
    records = range(0, size, 1 if every else size // SAMPLE)
    labels = dict(zip(records, _labels(source, records).tolist(), strict=True))
    wrong = [record for record in records if not 0 <= labels[record] < source.label_range]
    if wrong:
        first = wrong[0]
        raise InputError(
            f"{len(wrong):,} of {len(records):,} labels read of {source.name} are no numbers of "
            f"classes: the first is {labels[first]} in {source.describe(first)}; the rule is 0 to "
            f"{source.label_range - 1}; choose a labelled split, or {source.remedy} "
            "with correct labels"
        )


def all_labels(source: Source) -> Int64[np.ndarray, " n"]:
    """Returns the label of every record.

    Where the labels are not known, all records are read, without decoding their images.

    Args:
      source: the split.

    Raises:
      InputError: a record can't be read, or its label is not the number of a class.
    """
    labels = _labels(source, range(len(source)))
    for record in np.flatnonzero((labels < 0) | (labels >= source.label_range))[:1]:
        require_label(source, int(record), int(labels[record]))
    return labels


def class_counts(source: Source) -> Int64[np.ndarray, " classes"]:
    """Returns the number of examples that have each class; see `all_labels`."""
    counts = np.bincount(all_labels(source), minlength=source.label_range)
    return counts if source.label_sets is None else counts @ source.label_sets.astype(np.int64)


def numbered_sets(
    several: Sequence[Iterable[int]], classes: int, name: Callable[[int], str]
) -> tuple[Int64[np.ndarray, " n"], UInt8[np.ndarray, "sets classes"]]:
    """Numbers the sets of labels that occur.

    Args:
      several: the labels of each record, numbers of classes.
      classes: the number of classes.
      name: names a record for the message.

    Returns:
      The number of each record's set, and the classes of each set as ones in its row.

    Raises:
      InputError: a label is not the number of a class.

    Examples:
      >>> numbers, sets = numbered_sets([(0, 2), (), (2, 0)], 3, str)
      >>> numbers.tolist(), sets.tolist()
      ([0, 1, 0], [[1, 0, 1], [0, 0, 0]])
    """
    known: dict[tuple[int, ...], int] = {}
    numbers = np.empty(len(several), np.int64)
    for record, labels in enumerate(several):
        found = tuple(sorted(set(labels)))
        if found and not 0 <= found[0] <= found[-1] < classes:
            wrong = found[0] if found[0] < 0 else found[-1]
            raise InputError(
                f"{name(record)} has the label {wrong}: the rule is 0 to {classes - 1}, the "
                "numbers of its classes; correct it"
            )
        numbers[record] = known.setdefault(found, len(known))
    sets = np.zeros((len(known), classes), np.uint8)
    for found, number in known.items():
        sets[number, list(found)] = 1
    return numbers, sets


def _labels(source: Source, records: range) -> Int64[np.ndarray, " records"]:
    """Returns the labels of some records, which are read where the labels are not known."""
    if source.labels is not None:
        return source.labels[records.start : records.stop : records.step]
    parts = [records[first : first + SAMPLE] for first in range(0, len(records), SAMPLE)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        read = pool.map(lambda part: [source.read(record)[1] for record in part], parts)
        return np.asarray(list(itertools.chain.from_iterable(read)), np.int64)


def class_names(
    root: pathlib.Path, largest: int, files: Sequence[str] = CLASSES
) -> tuple[str, ...]:
    """Returns the names of the classes of a dataset whose labels are numbers.

    Args:
      root: the folder of the dataset.
      largest: the largest label.
      files: names of files in that folder. The first that exists has one class a line, in the order
        of the labels. Without a file, the names are the numbers.

    Raises:
      InputError: the file can't be read, or has an empty line or a name twice; or there is none,
        and the largest label is above 999,999.

    Examples:
      >>> class_names(pathlib.Path("folder without classes.txt"), 2)
      ('0', '1', '2')
    """
    path = next((path for file in files if (path := root / file).exists()), None)
    if path is None and largest > LARGEST:
        raise InputError(
            f"the dataset in {str(root)!r} has the label {largest:,}: the rule is 0 to "
            f"{LARGEST:,}, numbers of classes; correct it, or name the classes in {files[0]}"
        )
    if path is None:
        return tuple(map(str, range(largest + 1)))
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} can't be read ({error}): write it again") from error
    if not names or not all(names) or len(set(names)) < len(names):
        raise InputError(
            f"{str(path)!r}: the rule is one class a line, each once, in the order of the labels; "
            "correct it"
        )
    return names
