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
import json
import pathlib
import re
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

from flaxres.data._index import Image, index_splits, store_of
from flaxres.data._shards import find_shards
from flaxres.data.store import Store
from flaxres.errors import InputError
from flaxres.remote import is_refusal

REMEDY = "download or write its tar again"
IMAGES = ("jpg", "jpeg", "png", "webp")
# As in WebDataset: the key is the path up to the first dot of the name.
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)")
# Labels are read into memory as a whole.
LARGEST_LABEL = 1 << 20


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
    indexes = index_splits("webdataset", found, data_dir, _images)
    return store_of("webdataset", root, found, indexes, REMEDY)


def _images(path: pathlib.Path) -> list[Image]:
    """Lists the images of a tar."""
    found = []
    for key, members in _samples(path):
        image, label = _parts(path, key, members)
        found.append((f"{key}.{image.extension}", image.offset, image.size, label))
    return found


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
        with path.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
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
        if is_refusal(path, error):
            raise
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
