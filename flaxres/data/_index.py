"""Indexes of images that lie within larger files, kept beside the prepared datasets."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from flaxres.data import digests
from flaxres.data._naming import folder_word
from flaxres.data.labels import CLASSES, class_names
from flaxres.data.store import Split, Store
from flaxres.errors import InputError
from flaxres.paths import expanded
from flaxres.remote import is_address, read_range

# Raised when the form of the index changes.
INDEX_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Index:
    """The place of every image of a split.

    Attributes:
      names: the name of each image.
      files: number of the file of each image.
      places: offset and size of each image in its file, in bytes.
      labels: label of each image.
    """

    names: Sequence[str]
    files: Int64[np.ndarray, " n"]
    places: Int64[np.ndarray, "n 2"]
    labels: Int64[np.ndarray, " n"]

    def digest(self) -> str:
        """Returns a SHA-256 over the index."""
        arrays = (self.files, self.places, self.labels)
        facts = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
        return digests.words_digest([digests.words_digest(self.names), *facts])


@dataclasses.dataclass(frozen=True)
class Slices(Sequence[Any]):
    """Random access to images that are slices of files.

    Attributes:
      files: path or address of each file.
      images: the place of every image.
    """

    files: tuple[str, ...]
    images: Index

    def __len__(self) -> int:
        return len(self.images.names)

    def __getitem__(self, index: Any) -> Any:
        offset, size = self.images.places[index].tolist()
        path = self.files[self.images.files[index]]
        if is_address(path):
            data = read_range(path, offset, size)
        else:
            with open(path, "rb") as file:  # noqa: PTH123 (speed)
                file.seek(offset)
                data = file.read(size)
        if len(data) < size:
            raise EOFError(f"the file ends before byte {offset + size:,}")
        return {
            "image": data,
            "label": int(self.images.labels[index]),
            "file_name": self.images.names[index],
        }


Image = tuple[str, int, int, int]
"""Name, offset, size and label of an image."""


def index_splits(
    store: str,
    found: Mapping[str, Sequence[pathlib.Path]],
    data_dir: str | None,
    images_of: Callable[[pathlib.Path], Sequence[Image]],
) -> dict[str, Index]:
    """Returns the index of each split, from the file that keeps it if that is of these files.

    It goes by the paths, sizes and times of change of the files.

    Args:
      store: name of the store, which is the folder of the indexes too.
      found: the files of each split.
      data_dir: folder of prepared datasets; None is the folder of TFDS.
      images_of: lists the images of a file.

    Raises:
      InputError: `images_of` refuses a file, or a split is empty.
    """
    folder = _prepared_folder(data_dir) / store
    return {name: _index_split(folder, name, paths, images_of) for name, paths in found.items()}


def store_of(
    name: str,
    root: pathlib.Path,
    found: Mapping[str, Sequence[pathlib.Path]],
    indexes: Mapping[str, Index],
    remedy: str,
    class_files: Sequence[str] = CLASSES,
    notes: tuple[str, ...] = (),
) -> Store:
    """Returns the store of indexes.

    Its digest covers the names and sizes of the files, the indexes and the classes.

    Args:
      name, remedy, notes: see `flaxres.data.store.Store`.
      root: folder of the dataset.
      found: the files of each split.
      indexes: the index of each split.
      class_files: see `flaxres.data.labels.class_names`.

    Raises:
      InputError: see `class_names`.
    """
    splits, facts = {}, [name]
    for split, paths in found.items():
        index, files = indexes[split], tuple(map(str, paths))
        sizes = [path.stat().st_size for path in paths]
        counts = np.bincount(index.files, minlength=len(paths)).tolist()
        numbered = tuple(zip(files, counts, strict=True))
        splits[split] = Split(Slices(files, index), index.labels, numbered, sum(sizes))
        facts += [f"{split}\0{path.name}\0{n}" for path, n in zip(paths, sizes, strict=True)]
        facts.append(index.digest())
    largest = max(int(split.labels.max()) for split in splits.values())
    classes = class_names(root, largest, class_files)
    digest = digests.words_digest([*facts, *classes])
    return Store(name, root, classes, digest, splits, remedy, notes)


def _index_split(
    folder: pathlib.Path,
    split: str,
    paths: Sequence[pathlib.Path],
    images_of: Callable[[pathlib.Path], Sequence[Image]],
) -> Index:
    """Returns the index of a split, kept in a folder."""
    facts = [f"version {INDEX_VERSION}"]
    for path in paths:
        status = path.stat()
        facts.append(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}")
    name = f"{folder_word(paths[0].parent)}_{digests.words_digest(map(repr, facts))[:16]}.npz"
    kept = folder / name
    try:
        # `np.load` leaves a damaged file open.
        with kept.open("rb") as stored, np.load(stored, allow_pickle=False) as file:
            names = json.loads(file["names"].tobytes())
            return Index(names, file["files"], file["places"], file["labels"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        index = _index(paths, images_of)
    if not index.names:
        raise InputError(f"split {split!r} in {str(paths[0].parent)!r} is empty: choose another")
    _keep(index, kept)
    return index


def _index(
    paths: Sequence[pathlib.Path], images_of: Callable[[pathlib.Path], Sequence[Image]]
) -> Index:
    """Lists the images of files."""
    names, files, places, labels = [], [], [], []
    for number, path in enumerate(paths):
        for name, offset, size, label in images_of(path):
            names.append(name)
            files.append(number)
            places.append((offset, size))
            labels.append(label)
    return Index(
        names,
        np.asarray(files, np.int64),
        np.asarray(places, np.int64).reshape(-1, 2),
        np.asarray(labels, np.int64),
    )


def _prepared_folder(data_dir: str | None) -> pathlib.Path:
    """Returns the folder of prepared datasets, by default TFDS's, without importing TFDS."""
    return expanded(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def _keep(index: Index, place: pathlib.Path) -> None:
    """Writes an index; where that is not allowed, the next start indexes again."""
    arrays = dataclasses.asdict(index)
    arrays["names"] = np.frombuffer(json.dumps(list(index.names)).encode(), np.uint8)
    # Not by tempfile, whose files only the owner can read; datasets are shared.
    part = place.with_name(f"{place.name}.{os.getpid()}.part")
    with contextlib.suppress(OSError):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                np.savez(file, **arrays)
            part.replace(place)
        except OSError:
            part.unlink(missing_ok=True)
            raise
