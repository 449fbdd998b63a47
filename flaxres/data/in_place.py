"""A folder of images that is read in place: `data.name='folder'` with `data.copy=False`.

Classes, labels and the order of the records are those of the prepared folder. So are the files that
are left out, but for images that can't be decoded: nothing is decoded in advance, and they go the
way of `data.bad_images` when their turn comes.

The digest covers the name, size and time of change of every file. Sizes alone would miss an edited
image of equal size, and digests of the content would read the whole dataset at every start, which
is what a preparation costs. A copy of the folder must therefore keep the times (`cp -a`,
`rsync -a`).
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from flaxres.data import digests
from flaxres.data.contents import require_images
from flaxres.data.folders import Listing, counted, list_folder, may_be_image
from flaxres.data.store import Split, Store

REMEDY = "repair or remove that file"


@dataclasses.dataclass(frozen=True)
class ImageFiles(Sequence[Any]):
    """Random access to images that are files.

    Attributes:
      paths: path of each image.
      names: the same within the folder, as text; see `flaxres.data.folders.Listing.file_name`.
      labels: label of each image.
    """

    paths: Sequence[str]
    names: Sequence[str]
    labels: Int64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        with open(self.paths[index], "rb") as file:  # noqa: PTH123 (speed)
            data = file.read()
        return {"image": data, "label": int(self.labels[index]), "file_name": self.names[index]}


def open_folder(source: str | None, validation: float = 0.0) -> Store:
    """Opens a folder of images without a copy.

    Args:
      source, validation: see `flaxres.data.folders.list_folder`.

    Raises:
      InputError: see `list_folder`; or a class has no images.
    """
    listing = list_folder(source, validation)
    splits: dict[str, Split] = {}
    facts, notes = ["folder", *listing.classes], [*listing.notes]
    for name in listing.splits:
        splits[name], more_facts, more_notes = _split(listing, name)
        facts += [name, *more_facts]
        notes += more_notes
    digest = digests.words_digest(facts)
    return Store(
        "folder", listing.root, listing.classes, digest, splits, REMEDY, tuple(notes), mixed=True
    )


def _split(listing: Listing, name: str) -> tuple[Split, list[str], list[str]]:
    """Returns a split, the facts for its digest, and notes on what is left out."""
    numbers = {label: number for number, label in enumerate(listing.classes)}
    paths, names, labels, facts, size = [], [], [], [], 0
    images = dict.fromkeys(listing.splits[name], 0)
    others: list[str] = []
    for label, path in listing.mixed(name):
        file_name = listing.file_name(path)
        if not may_be_image(path):
            others.append(file_name)
            continue
        status = path.stat()
        size += status.st_size
        images[label] += 1
        paths.append(os.fspath(path))
        names.append(file_name)
        labels.append(numbers[label])
        facts.append(f"{file_name}\0{status.st_size}\0{status.st_mtime_ns}")
    require_images(name, len(others), images)
    notes = []
    if others:
        types = counted(map(pathlib.PurePath, others))
        notes.append(
            f"{len(others)} files of split {name!r} are no images ({types}; the first is "
            f"{min(others)!r}): left out"
        )
    root, known = str(listing.root), np.asarray(labels, np.int64)
    records = ImageFiles(paths, names, known)
    return Split(records, known, ((root, len(paths)),), size), facts, notes
