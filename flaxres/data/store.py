"""Datasets that are read where they lie, without a preparation.

`flaxres.data.stores` opens them by name.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from flaxres.data._naming import folder_word, require_split
from flaxres.data.source import Source
from flaxres.errors import InputError


@dataclasses.dataclass(frozen=True)
class Split:
    """The records of one split of a store.

    Attributes:
      records: random access to dictionaries with `image`, `label` and `file_name`; can be pickled.
      labels: the label of each record.
      files: the files of the split in order, each with its number of records.
      size: number of bytes of the files.
      label_sets: see `flaxres.data.source.Source`.
    """

    records: Sequence[Any]
    labels: Int64[np.ndarray, " n"]
    files: tuple[tuple[str, int], ...]
    size: int
    label_sets: UInt8[np.ndarray, "sets classes"] | None = None

    def class_counts(self, classes: int) -> Int64[np.ndarray, " classes"]:
        """Returns the number of records of each class, without labels that are no classes."""
        if self.label_sets is not None:
            return np.asarray(self.label_sets[self.labels].sum(0, dtype=np.int64))
        return np.bincount(self.labels[_valid(self.labels, classes)], minlength=classes)


@dataclasses.dataclass(frozen=True)
class Store:
    """A dataset that is read in place.

    Attributes:
      name: one of `flaxres.data.choices.IN_PLACE`.
      path: the folder of its files.
      classes: names of the classes in label order.
      digest: SHA-256 that changes with the records; the module of each store says what it covers.
      splits: the splits by name.
      remedy: see `flaxres.data.source.Source`.
      notes: sentences on what is left out or unusual.
      mixed: the order of the records mixes the classes, so that any slice holds all of them.
    """

    name: str
    path: pathlib.Path
    classes: tuple[str, ...]
    digest: str
    splits: Mapping[str, Split]
    remedy: str
    notes: tuple[str, ...] = ()
    mixed: bool = False

    def sources(self, splits: Sequence[str] = ()) -> list[Source]:
        """Returns a source for each split.

        Args:
          splits: names of the splits, with slices as in TFDS: `train[:90%]`. Empty is all splits.

        Raises:
          InputError: there is no such split, a slice is empty or malformed, or it is a slice of
            records that are sorted by class.
        """
        return [self._source(split) for split in splits or self.splits]

    def describe(self) -> dict[str, Any]:
        """Returns facts about the dataset; see `flaxres.data.sources.describe`.

        There is no `version`; `digest` is that of the dataset.
        """
        splits, counts, notes = {}, {}, [*self.notes]
        for name, split in self.splits.items():
            splits[name] = {
                "examples": len(split.labels),
                "bytes": split.size,
                "shards": len(split.files),
                "sha256": None,
            }
            numbers = split.class_counts(len(self.classes)).tolist()
            counts[name] = {label: n for label, n in zip(self.classes, numbers, strict=True) if n}
            if split.label_sets is not None:
                if without := int((split.label_sets.sum(1)[split.labels] == 0).sum()):
                    notes.append(f"{without:,} images of split {name!r} have no label")
            elif wrong := int((~_valid(split.labels, len(self.classes))).sum()):
                notes.append(f"{wrong:,} labels of split {name!r} are no numbers of classes")
        return {
            "path": str(self.path),
            "version": None,
            "digest": self.digest,
            "splits": splits,
            "classes": list(self.classes),
            "report": {"classes": counts, "notes": notes},
        }

    def _source(self, split: str) -> Source:
        """Returns the source of a split or of a slice of it."""
        require_split(self.name, split, self.splits)
        whole = self.splits[split.partition("[")[0]]
        part = _slice(self.name, split, len(whole.labels))
        if len(part) < len(whole.labels) and not self.mixed and whole.label_sets is None:
            _require_mixed(self.name, split, whole.labels)
        return Source(
            f"{self.name}/{split}",
            f"{self.name}/{folder_word(self.path)}",
            self.classes,
            self.digest,
            whole.records if len(part) == len(whole.labels) else Part(whole.records, part),
            "image",
            "label",
            tuple(_files_of(whole.files, part)),
            whole.labels[part.start : part.stop],
            whole.label_sets,
            self.remedy,
        )


@dataclasses.dataclass(frozen=True)
class Part(Sequence[Any]):
    """Some consecutive records of others.

    Examples:
      >>> part = Part(["a", "b", "c", "d"], range(1, 3))
      >>> len(part), part[1]
      (2, 'c')
    """

    records: Sequence[Any]
    part: range

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: Any) -> Any:
        return self.records[self.part[index]]


def _valid(labels: Int64[np.ndarray, " n"], classes: int) -> Bool[np.ndarray, " n"]:
    """Returns which labels are numbers of classes."""
    return np.asarray((labels >= 0) & (labels < classes))


def _slice(name: str, split: str, size: int) -> range:
    """Returns the records of a split in TFDS's syntax, such as `train[:90%]`."""
    base = split.partition("[")[0]
    if split == base and size:
        return range(size)
    import tensorflow_datasets as tfds

    info = tfds.core.SplitInfo(name=base, shard_lengths=[size], num_bytes=0)
    try:
        (chosen,) = tfds.core.ReadInstruction.from_spec(split).to_absolute({base: info})
    except (ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"split {split!r} of {name}: {reason}: write one split, or a slice such as "
            f"{base + '[:90%]'!r}"
        ) from error
    part = range(size)[chosen.from_ : chosen.to]
    if not part:
        raise InputError(f"split {split!r} of {name} is empty: choose another")
    return part


def _files_of(files: Sequence[tuple[str, int]], part: range) -> Iterator[tuple[str, int]]:
    """Iterates over the files of consecutive records, each with its number of them."""
    ends = itertools.accumulate(count for _, count in files)
    for (path, count), end in zip(files, ends, strict=True):
        if taken := range(max(end - count, part.start), min(end, part.stop)):
            yield path, len(taken)


def _require_mixed(name: str, split: str, labels: Int64[np.ndarray, " n"]) -> None:
    """Refuses a slice of records that are sorted by class."""
    present, runs = len(np.unique(labels)), 1 + np.count_nonzero(np.diff(labels))
    if 1 < present == runs:
        raise InputError(
            f"{split!r} of {name} would lack classes, since the records of its files are sorted by "
            "class: use whole splits, or shuffle the dataset and write it again"
        )
