"""The folder for files that flaxres can build or download again."""

import os
import pathlib


def cache_folder() -> pathlib.Path:
    """Returns `flaxres` in the user's cache folder, which may not exist yet.

    Raises:
      RuntimeError: the user has no home folder.
    """
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "flaxres"


def private_folder(name: str) -> pathlib.Path:
    """Creates a folder in the cache that only the user may enter, since its content is executed.

    Args:
      name: path of the folder below `cache_folder()`.

    Returns:
      The folder.

    Raises:
      OSError: the folder can't be written.
      RuntimeError: the user has no home folder.
    """
    folder = cache_folder() / name
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder
