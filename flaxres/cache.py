"""The folder of the user's cache that what was compiled on this machine is kept in."""

import os
import pathlib


def private_folder(name: str) -> pathlib.Path:
    """`flaxres/NAME` in the user's cache folder, made if need be, which only the user may enter, since what lies there is run.

    Raises OSError where it can't be written, and RuntimeError for a user without a home.
    """
    folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flaxres" / name
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder
