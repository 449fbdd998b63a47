"""Where flaxres keeps in the user's cache folder what it can make or fetch again."""

import os
import pathlib


def cache_folder() -> pathlib.Path:
    """`flaxres` in the user's cache folder. Raises RuntimeError for a user without a home."""
    return (
        pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "flaxres"
    )


def private_folder(name: str) -> pathlib.Path:
    """`cache_folder() / name`, made if need be, which only the user may enter, since what lies there is run.

    Raises OSError where it can't be written, and RuntimeError for a user without a home.
    """
    folder = cache_folder() / name
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder
