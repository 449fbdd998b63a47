"""Paths that people give."""

import os
import pathlib


def expanded(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns a path with `~` and `~user` replaced by the home folder.

    `~user` without such a user stays as it is. `pathlib.Path.expanduser` raises a RuntimeError.

    Examples:
      >>> expanded("~/runs") == pathlib.Path.home() / "runs"
      True
    """
    return pathlib.Path(os.path.expanduser(path))  # noqa: PTH111 (never raises)
