"""Folders of images, `<split>/<class>/...`."""

import collections
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from PIL import Image

from flaxres.data.contents import Contents, Example, Examples, mixed, stratified
from flaxres.data.images import is_image
from flaxres.errors import InputError
from flaxres.paths import expanded

# The split that `data.validation` takes from the training split.
VALIDATION = "val"
# Of a file that is no image by its content only the first bytes are read.
HEADER_BYTES = 64

Files = Mapping[str, Sequence[pathlib.Path]]
"""Files of each class."""


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of a folder of images, by split and class.

    Attributes:
      root: the folder.
      classes: names of the classes in label order.
      splits: for each split the files of each class, images or not.
      notes: sentences on what is left out or unusual.
    """

    root: pathlib.Path
    classes: tuple[str, ...]
    splits: Mapping[str, Files]
    notes: tuple[str, ...]

    def file_name(self, path: pathlib.Path) -> str:
        """Returns the name of a file within the folder; bytes that are not UTF-8 are escaped."""
        # `relative_to` takes 6 microseconds, and there may be a million files.
        inside = os.fspath(path).removeprefix(self._prefix)
        return os.fsencode(inside).decode(errors="backslashreplace")

    @functools.cached_property
    def _prefix(self) -> str:
        return os.path.join(self.root, "")  # noqa: PTH118 (pathlib drops the last slash)

    def mixed(self, split: str) -> list[tuple[str, pathlib.Path]]:
        """Returns the class and the path of each file of a split, in the order of its records."""
        return mixed(self.splits[split], self.file_name)


def list_folder(source: str | pathlib.Path | None, validation: float = 0.0) -> Listing:
    """Lists the files in `<split>/<class>/`. Classes are numbered in the order of their names.

    Args:
      source: the folder with the splits.
      validation: share of each class of the split `train` that becomes the split `val`; 0 keeps
        the splits as they are.

    Raises:
      InputError: there is no such folder, it holds no files, a class has no files in one of the
        splits or a name that can't be stored, or there is no training split to divide.
    """
    root = require_folder(source)
    by_split, notes = {}, []
    for split in visible(root):
        files, hidden = _scan(split)
        by_split[split.name] = files
        notes += _notes(split, files, hidden)
    by_split = {split: _not_empty(files) for split, files in by_split.items()}
    by_split = {split: files for split, files in by_split.items() if files}
    if not by_split:
        raise InputError(
            f"data.source={str(root)!r} holds no <split>/<class>/*.jpg|jpeg|png: arrange the "
            "images like train/cat/1.jpg"
        )
    everywhere = sorted(set().union(*by_split.values()))
    for name in (*by_split, *everywhere):
        _require_storable(name)
    _require_classes(root, by_split, everywhere)
    if validation:
        _require_divisible(root, by_split, validation)
        whole = Listing(root, (), by_split, ())
        train, held_out = stratified(by_split["train"], validation, whole.file_name)
        by_split |= {"train": train, VALIDATION: _not_empty(held_out)}
    notes += _notes_on_classes(by_split, everywhere)
    return Listing(root, tuple(everywhere), by_split, tuple(notes))


def folder(source: pathlib.Path | None, validation: float = 0.0) -> Contents:
    """Returns the images in `<split>/<class>/`, to be prepared.

    A file is an image if Pillow opens it, whatever its name. Classes are mixed within each split.

    Args:
      source, validation: see `list_folder`.

    Raises:
      InputError: see `list_folder`.
    """
    listing = list_folder(source, validation)

    def examples(split: str) -> Iterator[Example]:
        for label, path in listing.mixed(split):
            yield listing.file_name(path), _content(path), label

    splits: dict[str, tuple[int, Examples]] = {
        split: (sum(map(len, files.values())), functools.partial(examples, split))
        for split, files in listing.splits.items()
    }
    return Contents(listing.classes, splits, notes=listing.notes)


def require_folder(source: str | pathlib.Path | None) -> pathlib.Path:
    """Returns `source` as a path.

    Raises:
      InputError: `source` is None or no folder. Every folder of images is a dataset by itself, so
        there is no default.
    """
    if source is None:
        raise InputError(
            "data.name='folder' needs data.source: the folder that holds <split>/<class>/*.jpg"
        )
    if not (path := expanded(source)).is_dir():
        raise InputError(
            f"data.source={str(source)!r} is not a folder: give the one that holds "
            "<split>/<class>/*.jpg"
        )
    return path


def visible(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders in a folder that are not hidden, in the order of their names."""
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def folder_split(split: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Returns the files of each class that has any, images or not; see `files_below`.

    Args:
      split: the folder of a split.
    """
    return _not_empty(_scan(split)[0])


def _not_empty(files: Files) -> dict[str, list[pathlib.Path]]:
    return {label: list(paths) for label, paths in files.items() if paths}


def _scan(split: pathlib.Path) -> tuple[dict[str, list[pathlib.Path]], int]:
    """Returns the files of all classes, and the number of hidden files and folders."""
    below = {label.name: files_below(label) for label in visible(split)}
    files = {label: paths for label, (paths, _) in below.items()}
    return files, sum(hidden for _, hidden in below.values())


def files_below(folder: pathlib.Path) -> tuple[list[pathlib.Path], int]:
    """Returns the files of a folder at any depth, sorted, and the number of hidden entries.

    Links to folders, and folders within folders, are followed, each folder once. Hidden files and
    folders are left out.
    """
    files: list[pathlib.Path] = []
    hidden = 0
    known: set[str] = set()  # against links that lead in a circle
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in known:
            folders.clear()
            continue
        known.add(real)
        hidden += sum(name.startswith(".") for name in (*folders, *names))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = (pathlib.Path(place, name) for name in names if not name.startswith("."))
        files += (path for path in inside if path.is_file())
    return sorted(files), hidden


def _notes(split: pathlib.Path, files: Files, hidden: int) -> list[str]:
    """Returns sentences on what the scan of a split left out."""
    notes = [
        f"class {label!r} of split {split.name!r} has no files: left out"
        for label, paths in files.items()
        if not paths
    ]
    if hidden:
        notes.append(f"{hidden} hidden files or folders in split {split.name!r}: left out")
    loose = [p for p in split.iterdir() if p.is_file() and not p.name.startswith(".")]
    if loose:
        notes.append(
            f"{len(loose)} files of split {split.name!r} lie in no class ({counted(loose)}; the "
            f"first is {min(loose).name!r}): left out"
        )
    return notes


def counted(files: Iterable[pathlib.PurePath]) -> str:
    """Returns the numbers of files by extension.

    Examples:
      >>> counted([pathlib.PurePath("a.txt"), pathlib.PurePath("b.TXT"), pathlib.PurePath("c")])
      '2 .txt, 1 no extension'
    """
    types = collections.Counter(path.suffix.lower() or "no extension" for path in files)
    return ", ".join(f"{number} {suffix}" for suffix, number in sorted(types.items()))


def _notes_on_classes(by_split: Mapping[str, Files], everywhere: Sequence[str]) -> list[str]:
    """Returns sentences on classes with few images."""
    notes = [
        f"class {label!r} has {('no image', 'one image')[len(files.get(label, ()))]} in split "
        f"{split!r}"
        for split, files in by_split.items()
        for label in everywhere
        if len(files.get(label, ())) <= 1
    ]
    if len(everywhere) == 1:
        notes.append(f"there is one class only, {everywhere[0]!r}: nothing can be learnt from it")
    return notes


def _require_divisible(
    source: pathlib.Path, by_split: Mapping[str, Files], validation: float
) -> None:
    """Refuses to divide a folder that has no training split, or has a validation split."""
    if VALIDATION in by_split or "train" not in by_split:
        raise InputError(
            f"data.validation={validation:g} divides the split 'train' of {str(source)!r} in "
            f"'train' and {VALIDATION!r}, which has the splits {', '.join(by_split)}: set "
            "data.validation=0 to use these"
        )


def _require_storable(name: str) -> None:
    """Refuses names of classes and splits that TFDS can't store."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"folder {name!r} has a name that is not UTF-8: rename it") from error
    if name != name.strip() or len(name.splitlines()) != 1:
        raise InputError(
            f"folder {name!r} has a name with a line break, or spaces around it, which a dataset "
            "can't store: rename it"
        )


def _require_classes(
    source: pathlib.Path, by_split: Mapping[str, Files], everywhere: Sequence[str]
) -> None:
    """Refuses a class that is missing in a split."""
    for split, classes in by_split.items():
        if missing := sorted(set(everywhere) - set(classes)):
            more = f" (and {len(missing) - 1} more classes)" if missing[1:] else ""
            raise InputError(
                f"class {missing[0]!r} has no images in split {split!r} of {str(source)!r}{more}: "
                "every class needs images in every split"
            )


def may_be_image(path: pathlib.Path) -> bool:
    """Returns True if the name of a file is that of an image, or its header is."""
    return path.suffix.lower() in Image.registered_extensions() or is_image(path)


def _content(path: pathlib.Path) -> bytes:
    """Returns the content of a file; of one that is no image only the first bytes."""
    try:
        if not may_be_image(path):
            with path.open("rb") as file:
                return file.read(HEADER_BYTES)
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{str(path)!r} can't be read ({error.strerror}): correct its permissions, or remove it"
        ) from error
