"""Tars in the form of WebDataset, read in place: `data.name='webdataset'`.

Consecutive members with one key are a sample: `0001.jpg` with `0001.cls`, an integer, or with
`0001.json`, an object with an integer `label`. The records are in the order of the members, and the
tars in that of their names. `classes.txt` beside the tars names the classes, one a line; without it
they are numbers.

One pass over the headers finds the place of every image. The index is kept beside the prepared
datasets, under a digest of the tars' names, sizes and times of change.

The digest of the dataset covers the names and sizes of the tars, and key, place, size and label of
every sample. It does not depend on times, so a second download is the same dataset.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from flaxres.data import digests
from flaxres.data._naming import folder_word
from flaxres.data._shards import find_shards
from flaxres.data.labels import class_names
from flaxres.data.store import Split, Store
from flaxres.errors import InputError
from flaxres.paths import expanded

REMEDY = "download or write its tar again"
IMAGES = ("jpg", "jpeg", "png", "webp")
# As in WebDataset: the key is the path up to the first dot of the name.
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)")
# Labels are read into memory as a whole.
LARGEST_LABEL = 1 << 20
# Raised when the form of the index changes.
INDEX_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Index:
    """The place of every image of a split.

    Attributes:
      keys: the key of each sample with the extension of its image.
      tars: number of the tar of each sample.
      places: offset and size of each image in its tar, in bytes.
      labels: label of each sample.
    """

    keys: Sequence[str]
    tars: Int64[np.ndarray, " n"]
    places: Int64[np.ndarray, "n 2"]
    labels: Int64[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class TarRecords(Sequence[Any]):
    """Random access to the images in tars that are not compressed.

    Attributes:
      files: path of each tar.
      samples: the place of every image.
    """

    files: tuple[str, ...]
    samples: Index

    def __len__(self) -> int:
        return len(self.samples.keys)

    def __getitem__(self, index: Any) -> Any:
        offset, size = self.samples.places[index].tolist()
        with open(self.files[self.samples.tars[index]], "rb") as file:  # noqa: PTH123 (speed)
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise EOFError(f"the tar ends before byte {offset + size:,}")
        return {
            "image": data,
            "label": int(self.samples.labels[index]),
            "file_name": self.samples.keys[index],
        }


def open_webdataset(source: str | None, data_dir: str | None) -> Store:
    """Opens a folder of tars, and indexes them if they are new.

    Args:
      source: the folder; see `flaxres.data._shards.find_shards`.
      data_dir: folder of prepared datasets; None is the folder of TFDS.

    Raises:
      InputError: the folder has no such tars, a tar is damaged, a sample lacks an image or a label,
        or a split is empty.
    """
    root, found = find_shards("webdataset", source, ".tar")
    splits, facts = {}, ["webdataset"]
    for name, paths in found.items():
        index = _indexed(root, paths, data_dir)
        if not index.keys:
            raise InputError(f"split {name!r} in {str(paths[0].parent)!r} is empty: choose another")
        counts = np.bincount(index.tars, minlength=len(paths)).tolist()
        sizes = [path.stat().st_size for path in paths]
        records = TarRecords(tuple(map(str, paths)), index)
        files = tuple(zip(records.files, counts, strict=True))
        splits[name] = Split(records, index.labels, files, sum(sizes))
        facts += [f"{name}\0{path.name}\0{n}" for path, n in zip(paths, sizes, strict=True)]
        facts += [digests.words_digest(index.keys)]
        arrays = (index.tars, index.places, index.labels)
        facts += [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
    classes = class_names(root, max(int(split.labels.max()) for split in splits.values()))
    digest = digests.words_digest([*facts, *classes])
    return Store("webdataset", root, classes, digest, splits, REMEDY)


def _indexed(root: pathlib.Path, paths: Sequence[pathlib.Path], data_dir: str | None) -> Index:
    """Returns the index of a split, from the file that keeps it if that is of these tars."""
    facts = [f"version {INDEX_VERSION}"]
    for path in paths:
        status = path.stat()
        facts.append(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}")
    name = f"{folder_word(root)}_{digests.words_digest(map(repr, facts))[:16]}.npz"
    kept = _prepared_folder(data_dir) / "webdataset" / name
    try:
        # `np.load` leaves a damaged file open.
        with kept.open("rb") as stored, np.load(stored, allow_pickle=False) as file:
            keys = json.loads(file["keys"].tobytes())
            return Index(keys, file["tars"], file["places"], file["labels"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        index = _index(paths)
    _keep(index, kept)
    return index


def _prepared_folder(data_dir: str | None) -> pathlib.Path:
    """Returns the folder of prepared datasets."""
    import tensorflow_datasets as tfds

    return expanded(data_dir or tfds.core.constants.DATA_DIR)


def _keep(index: Index, place: pathlib.Path) -> None:
    """Writes an index; where that is not allowed, the next start indexes again."""
    keys = np.frombuffer(json.dumps(list(index.keys)).encode(), np.uint8)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
            try:
                np.savez(file, keys=keys, tars=index.tars, places=index.places, labels=index.labels)
                pathlib.Path(file.name).replace(place)
            except OSError:
                os.unlink(file.name)  # noqa: PTH108
                raise
    except OSError:
        return


def _index(paths: Iterable[pathlib.Path]) -> Index:
    """Finds the images and labels in tars."""
    keys, tars, places, labels = [], [], [], []
    for number, path in enumerate(paths):
        for key, members in _samples(path):
            image, label = _parts(path, key, members)
            keys.append(f"{key}.{image.extension}")
            tars.append(number)
            places.append((image.offset, image.size))
            labels.append(label)
    return Index(
        keys,
        np.asarray(tars, np.int64),
        np.asarray(places, np.int64).reshape(-1, 2),
        np.asarray(labels, np.int64),
    )


@dataclasses.dataclass(frozen=True)
class _Member:
    """A file within a tar; only labels have their content with them."""

    extension: str
    offset: int
    size: int
    content: bytes = b""


def _samples(path: pathlib.Path) -> Iterator[tuple[str, list[_Member]]]:
    """Iterates over the keys of a tar and their members."""
    try:
        with tarfile.open(path, "r:") as tar:
            key, members = "", list[_Member]()
            while info := tar.next():
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
                match = _MEMBER.fullmatch(info.name)
                if match is None or not info.isreg() or info.issparse():
                    continue
                if members and match[1] != key:
                    yield key, members
                    members = []
                key = match[1]
                members.append(_member(path, tar, info, match[2].lower()))
            # A header that can't be read ends the iteration like the end of the tar.
            with path.open("rb") as file:
                file.seek(tar.offset)
                complete = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
            if not complete:
                raise tarfile.ReadError(f"no end of the archive at byte {tar.offset:,}")
            if members:
                yield key, members
    except (tarfile.TarError, EOFError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{str(path)!r} can't be read as a tar without compression ({reason}): it is cut, "
            "damaged or compressed; download or write it again"
        ) from error


def _member(
    path: pathlib.Path, tar: tarfile.TarFile, info: tarfile.TarInfo, extension: str
) -> _Member:
    """Returns a member of a tar, with its content if that is a label."""
    if extension not in ("cls", "json"):
        return _Member(extension, info.offset_data, info.size)
    if info.size > LARGEST_LABEL:
        raise InputError(
            f"{str(path)!r}: {info.name!r} has {info.size:,} bytes: the rule is at most "
            f"{LARGEST_LABEL:,} for a label; write the tar again"
        )
    file = tar.extractfile(info)
    content = file.read() if file else b""
    return _Member(extension, info.offset_data, info.size, content)


def _parts(path: pathlib.Path, key: str, members: Sequence[_Member]) -> tuple[_Member, int]:
    """Returns the image and the label of a sample."""
    extensions = [member.extension for member in members]
    where = f"{str(path)!r}: sample {key!r} ({', '.join(extensions)})"
    images = [member for member in members if member.extension in IMAGES]
    if len(images) != 1 or len(set(extensions)) < len(extensions):
        raise InputError(
            f"{where} has {len(images)} images: the rule is one of {', '.join(IMAGES)} for each "
            "key, and each extension once; write the tar again"
        )
    by_extension = {member.extension: member.content for member in members}
    if not {"cls", "json"} & by_extension.keys():
        raise InputError(
            f"{where} has no label: the rule is a file .cls with an integer, or .json with "
            "'label'; write the tar again"
        )
    text = by_extension.get("cls", by_extension.get("json", b""))
    label: Any = None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        label = int(text) if "cls" in by_extension else json.loads(text)["label"]
    if type(label) is not int or abs(label) >= 2**31:
        raise InputError(
            f"{where} has the label {text[:40]!r}: the rule is an integer in .cls, or 'label' in "
            ".json; write the tar again"
        )
    return images[0], label
