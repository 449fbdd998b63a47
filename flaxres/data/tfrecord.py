"""TFRecord files of images, read in place and without TensorFlow: `data.name='tfrecord'`.

Each record is a `tf.train.Example` in the layout of TFDS (`image`, `label`, `file_name`) or in that
of ImageNet by TensorFlow's models (`image/encoded`, `image/class/label`, `image/filename`). Labels
of the second layout begin at 1 for ImageNet: if no label of any split is 0, 1 is the first class.
`classes.txt` or TFDS's `label.labels.txt` beside the files names the classes; without them they are
numbers. The records are in the order of the files, which is that of their names.

One pass finds the place of every image. It follows the lengths in the records, where a parser of
whole messages would read the images too. The index is kept beside the prepared datasets. The digest
covers the names and sizes of the files, and name, place, size and label of every image.

The forms are those of https://www.tensorflow.org/tutorials/load_data/tfrecord and of
https://protobuf.dev/programming-guides/encoding.
"""

import contextlib
import dataclasses
import mmap
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from flaxres.data._index import Image, Index, index_splits, store_of
from flaxres.data._shards import find_shards
from flaxres.data.labels import CLASSES
from flaxres.data.store import Store
from flaxres.errors import InputError
from flaxres.remote import is_address, is_refusal

REMEDY = "download or write its file again"
IMAGES = ("image/encoded", "image")
LABELS = ("image/class/label", "label")
NAMES = ("image/filename", "file_name")
GZIP = b"\x1f\x8b"
# Bytes before a record (its length, and the checksum of that) and after it (its checksum).
HEAD, TAIL = 12, 4
# Wire types of protocol buffers.
VARINT, BYTES = 0, 2
Data = mmap.mmap | bytes
FIXED = {1: 8, 5: 4}


def open_tfrecord(source: str | None, data_dir: str | None) -> Store:
    """Opens a folder of TFRecord files, and indexes them if they are new.

    Args:
      source: the folder; see `flaxres.data._shards.find_shards`.
      data_dir: folder of prepared datasets; None is the folder of TFDS.

    Raises:
      InputError: the folder has no such files, a file is cut, damaged or compressed, a record has
        no image or no label, or a split is empty.
    """
    root, found = find_shards("tfrecord", source, ".tfrecord")
    indexes, notes = index_splits("tfrecord", found, data_dir, _images), tuple[str, ...]()
    if first := _first_label(found, indexes):
        indexes = {
            name: dataclasses.replace(index, labels=index.labels - first)
            for name, index in indexes.items()
        }
        notes = ("labels are counted from 1 in the files: 1 is the first class",)
    class_files = (*CLASSES, "label.labels.txt")
    return store_of("tfrecord", root, found, indexes, REMEDY, class_files, notes)


def _first_label(found: dict[str, list[pathlib.Path]], indexes: dict[str, Index]) -> int:
    """Returns 1 if labels are counted from 1, else 0."""
    name, paths = next(iter(found.items()))
    path = paths[int(indexes[name].files[0])]
    with _mapped(path) as data:
        start, end = next(_records(path, data))
        layout = {name for name, _, _ in _features(data, start, end)}
    least = min(int(index.labels.min()) for index in indexes.values())
    return int(LABELS[0] in layout and least > 0)


def _images(path: pathlib.Path) -> list[Image]:
    """Lists the images of a file."""
    if not path.stat().st_size:
        return []
    with _mapped(path) as data:
        return [
            _image(path, data, number, start, end)
            for number, (start, end) in enumerate(_records(path, data))
        ]


@contextlib.contextmanager
def _mapped(path: pathlib.Path) -> Iterator[Data]:
    """Maps a file into memory, so that only what is looked at is read; downloads an object."""
    try:
        if is_address(str(path)):
            yield path.read_bytes()
            return
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except (OSError, IndexError, ValueError) as error:
        if is_refusal(path, error):
            raise
        reason = " ".join(str(error).split())
        raise InputError(
            f"{str(path)!r} can't be read as TFRecord ({reason}): it is cut, damaged or of another "
            "form; download or write it again"
        ) from error


def _records(path: pathlib.Path, data: Data) -> Iterator[tuple[int, int]]:
    """Iterates over the places of the records of a file: the first byte, and that after the last.

    Raises:
      ValueError: the file ends within a record.
    """
    if data[:2] == GZIP and int.from_bytes(data[:8], "little") > len(data):
        raise InputError(
            f"{str(path)!r} is compressed by gzip: unpack it, since records of compressed files "
            "can't be read in random order"
        )
    at = 0
    while at < len(data):
        start = at + HEAD
        end = start + int.from_bytes(data[at : at + 8], "little")
        if end + TAIL > len(data):
            raise ValueError(f"the record at byte {at:,} would end at byte {end + TAIL:,}")
        yield start, end
        at = end + TAIL


def _image(path: pathlib.Path, data: Data, number: int, start: int, end: int) -> Image:
    """Returns the image of a record."""
    features = {name: (first, last) for name, first, last in _features(data, start, end)}
    image, label, name = (
        next((features[key] for key in keys if key in features), None)
        for keys in (IMAGES, LABELS, NAMES)
    )
    bytes_, integers = image and _only(data, *image, 1), label and _only(data, *label, 3)
    if not isinstance(bytes_, tuple) or not isinstance(integers, int):
        raise InputError(
            f"record {number} of {str(path)!r} has the features {', '.join(sorted(features))}: the "
            f"rule is one of {', '.join(IMAGES)} with an encoded image and one of "
            f"{', '.join(LABELS)} with an integer; write the dataset again"
        )
    text = _only(data, *name, 1) if name else None
    written = data[text[0] : text[1]].decode(errors="replace") if isinstance(text, tuple) else ""
    return written, bytes_[0], bytes_[1] - bytes_[0], integers


def _features(data: Data, start: int, end: int) -> Iterator[tuple[str, int, int]]:
    """Iterates over the features of a `tf.train.Example`: name and place of each."""
    for features in _messages(data, start, end, 1):
        for entry in _messages(data, *features, 1):
            names, values = (list(_messages(data, *entry, number)) for number in (1, 2))
            if names and values:
                first, last = names[-1]
                yield data[first:last].decode(), *values[-1]


def _only(data: Data, start: int, end: int, kind: int) -> tuple[int, int] | int | None:
    """Returns the only value of a `tf.train.Feature`: the place of bytes, or an integer.

    Args:
      data: the file.
      start, end: the place of the feature.
      kind: 1 for a list of bytes, 3 for a list of integers.
    """
    found: list[Any] = []
    for values in _messages(data, start, end, kind):
        for number, wire, value in _fields(data, *values):
            if number != 1:
                continue
            if kind == 3 and wire == BYTES:  # packed
                at, last = value
                while at < last:
                    integer, at = _varint(data, at)
                    found.append(integer)
            else:
                found.append(value)
    if len(found) != 1:
        return None
    (value,) = found
    return int(np.uint64(value).astype(np.int64)) if isinstance(value, int) else value


def _messages(data: Data, start: int, end: int, number: int) -> Iterator[tuple[int, int]]:
    """Iterates over the places of the fields of a number, in a message, that have a length."""
    for found, wire, value in _fields(data, start, end):
        if found == number and wire == BYTES:
            yield value


def _fields(data: Data, start: int, end: int) -> Iterator[tuple[int, int, Any]]:
    """Iterates over the fields of a message: number, wire type, and integer or place.

    Raises:
      ValueError: this is no message.
    """
    at = start
    while at < end:
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        value: Any
        if wire == VARINT:
            value, at = _varint(data, at)
        else:
            size = FIXED.get(wire)
            if wire == BYTES:
                size, at = _varint(data, at)
            if size is None:
                raise ValueError(f"no message at byte {at:,}")
            value, at = (at, at + size), at + size
        if at > end or not number:
            raise ValueError(f"no message at byte {at:,}")
        yield number, wire, value


def _varint(data: Data, at: int) -> tuple[int, int]:
    """Returns an integer of variable length and the place after it.

    Raises:
      ValueError: it has more than ten bytes.
    """
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), at
    raise ValueError(f"no integer at byte {at:,}")
