"""One split of a prepared dataset, with random access to its records."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from flaxres.data import digests
from flaxres.errors import InputError
from flaxres.remote import RemoteError


@dataclasses.dataclass(frozen=True)
class Source:
    """Random access to the encoded images of one split and their labels.

    A source can be pickled for worker processes. `flaxres.data.sources` opens those of prepared
    datasets, `flaxres.data.store` those of datasets that are read in place.

    Attributes:
      name: dataset and split, for messages.
      dataset: full name of the dataset in TFDS, `name[/config]:version`, or of a store.
      classes: names of the classes in label order.
      digest: SHA-256 over the dataset's name, version and classes, the number of examples and
        bytes of its splits, and, if flaxres wrote the dataset, all its examples. For a store, see
        `flaxres.data.store.Store`.
      records: the records of the split, each a dictionary of features.
      image_key, label_key: names of the features with the encoded image and the label.
      files: the files of the split in order, each with the number of records read from it.
      labels: the labels of all records where they are known without reading the images, else None.
      label_sets: for images with any number of labels: the classes of each set of them that occurs,
        as ones in its row. A record's label is then the number of a row. None for single labels.
      remedy: repairs a damaged record, for messages.

    Examples:
      >>> records = [{"image": b"...", "label": 1, "file_name": b"dog/1.jpg"}]
      >>> files = (("animals-train.array_record", 1),)
      >>> source = Source(
      ...     "animals/train", "animals:1.0.0", ("cat", "dog"), "", records, "image", "label", files
      ... )
      >>> source.read(0)
      (b'...', 1)
      >>> source.describe(0)
      'animals/train record 0 (dog/1.jpg)'
    """

    name: str
    dataset: str
    classes: tuple[str, ...]
    digest: str
    records: Sequence[Any]
    image_key: str
    label_key: str
    files: tuple[tuple[str, int], ...]
    labels: Int64[np.ndarray, " n"] | None = dataclasses.field(default=None, compare=False)
    label_sets: UInt8[np.ndarray, "sets classes"] | None = dataclasses.field(
        default=None, compare=False
    )
    remedy: str = "prepare the dataset again"

    @property
    def label_range(self) -> int:
        """The number of different labels that records may have."""
        return len(self.classes if self.label_sets is None else self.label_sets)

    def targets(self, labels: Int32[np.ndarray, " n"]) -> np.ndarray:
        """Returns what a batch holds for labels.

        Args:
          labels: the labels of records.

        Returns:
          The labels; or, for images with any number of them, (n, classes) uint8 ones and zeros.
        """
        return labels if self.label_sets is None else self.label_sets[labels]

    @property
    def class_digest(self) -> str:
        """SHA-256 over the names of the classes in label order."""
        return digests.words_digest(self.classes)

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> tuple[bytes, int]:
        """Reads a record.

        Args:
          index: number of the record.

        Returns:
          The encoded image and its label.

        Raises:
          InputError: the record is damaged.
        """
        try:
            record = self.records[index]
            return record[self.image_key], int(record[self.label_key])
        except RemoteError as error:
            raise InputError(
                f"{self.name} record {index} can't be read from {self.file(index)!r} ({error}): "
                "what was saved is intact; start the same command again once the store answers"
            ) from error
        except Exception as error:  # array_record and the protobuf parser raise many types
            reason = " ".join(str(error).split())
            raise InputError(
                f"{self.name} record {index} can't be read from {self.file(index)!r} ({reason}): "
                f"that file is damaged, {self.remedy}"
            ) from error

    def file(self, index: int) -> str:
        """Returns the path of the file that holds a record."""
        for path, count in self.files:
            if index < count:
                return path
            index -= count
        return "no file"

    def file_name(self, index: int) -> str:
        """Returns the name of a record's image before preparation; '' if it is unknown."""
        name = self.records[index].get("file_name", b"")
        return name.decode(errors="replace") if isinstance(name, bytes) else str(name)

    def describe(self, index: int) -> str:
        """Returns a description of a record for messages."""
        name = self.file_name(index)
        return f"{self.name} record {index}" + (f" ({name})" if name else "")
