"""Names of prepared datasets and their splits."""

import hashlib
import pathlib
from collections.abc import Iterable

from flaxres.data.builders import folder_split, visible
from flaxres.errors import unknown

# The version of the datasets that flaxres writes.
VERSION = "1.1.0"


def config_name(name: str, source: str | None) -> str | None:
    """Returns the name of the TFDS config that holds a folder of images.

    It consists of the folder's name and a digest of its path and of its files' names, sizes and
    times of change.

    Args:
      name: name of the dataset.
      source: the folder of images.

    Returns:
      The name; None for any dataset but `folder`.
    """
    if name != "folder" or source is None:
        return None
    root = pathlib.Path(source).expanduser().resolve()
    digest = hashlib.sha256(f"{VERSION}\n{root}".encode())
    for split in visible(root) if root.is_dir() else []:
        for label, paths in folder_split(split).items():
            for path in paths:
                status = path.stat()
                file = f"{split.name}/{label}/{path.name}"
                digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    letters = "".join(c if c.isalnum() else "_" for c in root.name.lower()) or "root"
    return f"{letters}_{digest.hexdigest()[:16]}"


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
        raise unknown(f"split of {name}", base, splits)
