"""Names of prepared datasets and their splits."""

import hashlib
import os
import pathlib
from collections.abc import Iterable

from flaxres.data.folders import folder_split, visible
from flaxres.errors import InputError, unknown
from flaxres.paths import expanded

# The version of the datasets that flaxres writes.
VERSION = "1.1.0"
# The version of datasets whose records were sorted by class before.
MIXED_VERSION = "1.2.0"
MIXED = ("folder", "imagenet2012")


def version(name: str) -> str:
    """Returns the version in which flaxres writes a dataset.

    Args:
      name: name of the dataset, without a config.

    Examples:
      >>> version("digits"), version("folder")
      ('1.1.0', '1.2.0')
    """
    return MIXED_VERSION if name in MIXED else VERSION


def require_divisible(name: str, validation: float) -> None:
    """Refuses a share of validation for a dataset that is no folder of images.

    Raises:
      InputError: `validation` is above 0, and `name` is not `folder`.
    """
    if validation and name != "folder":
        raise InputError(
            f"data.validation={validation:g} with data.name={name!r}: it divides folders only; set "
            "data.validation=0 and use splits or slices such as 'train[:90%]'"
        )


def config_name(name: str, source: str | None, validation: float = 0.0) -> str | None:
    """Returns the name of the TFDS config that holds a folder of images.

    It consists of the folder's name and a digest of its path and of its files' names, sizes and
    times of change.

    Args:
      name: name of the dataset.
      source: the folder of images.
      validation: see `flaxres.data.folders.folder`.

    Returns:
      The name; None for any dataset but `folder`.
    """
    if name != "folder" or source is None:
        return None
    root = expanded(source).resolve()
    digest = hashlib.sha256(
        f"{version(name)}\n{root}\n{validation!r}".encode(errors="surrogateescape")
    )
    for split in visible(root) if root.is_dir() else []:
        for paths in folder_split(split).values():
            for path in paths:
                status = path.stat()
                file = os.fsdecode(path.relative_to(root))
                facts = f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n"
                digest.update(os.fsencode(facts))
    return f"{folder_word(root)}_{digest.hexdigest()[:16]}"


def folder_word(folder: pathlib.Path) -> str:
    """Returns the name of a folder in lower case, with `_` for all but letters and digits.

    Examples:
      >>> folder_word(pathlib.Path("/data/My pets:2"))
      'my_pets_2'
    """
    return "".join(c if c.isalnum() else "_" for c in folder.resolve().name.lower()) or "root"


def require_split(name: str, split: str, splits: Iterable[str]) -> None:
    """Refuses a split that a dataset does not have.

    Args:
      name: name of the dataset, for the message.
      split: name of the split, which may have a slice: `train[:90%]`.
      splits: names of the splits of the dataset.

    Raises:
      InputError: `split` is not among `splits`.
    """
    splits = list(splits)
    if (base := split.partition("[")[0]) not in splits:
        error = unknown(f"split of {name}", base, splits)
        if (name, base) != ("folder", "val"):
            raise error
        raise InputError(
            f"{error}; or hold out a part of train as val, e.g. a tenth: data.validation=0.1 "
            "(--data.validation 0.1)"
        )
