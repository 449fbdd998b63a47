"""The folder for files that flaxres can build or download again."""

import os
import pathlib
import stat
import tempfile

from flaxres.printing import say


def cache_folder() -> pathlib.Path:
    """Returns `flaxres` in the user's cache folder, which may not exist yet.

    Raises:
      RuntimeError: the user has no home folder.
    """
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "flaxres"


def private_folder(name: str) -> pathlib.Path:
    """Creates a folder that only the user can change, since its content is executed.

    The folder is in the user's cache. If somebody else could change it there, as under `sudo` with
    the home folder of another user, it is in the folder for temporary files, and a line on stderr
    says so.

    Args:
      name: path of the folder below `cache_folder()`.

    Returns:
      The folder.

    Raises:
      OSError: neither folder can be written, or somebody else can change both.
      RuntimeError: the user has no home folder.
    """
    folder = cache_folder() / name
    folder.mkdir(parents=True, exist_ok=True)
    if not (reason := _foreign(folder)):
        folder.chmod(0o700)
        return folder
    other = pathlib.Path(tempfile.gettempdir()) / f"flaxres-{os.geteuid()}" / name
    other.mkdir(mode=0o700, parents=True, exist_ok=True)
    if second := _foreign(other):
        raise PermissionError(f"somebody else could change code in it: {reason}, and {second}")
    other.chmod(0o700)
    say(f"flaxres: code is kept in {str(other)!r}, because {reason}")
    return other


def _foreign(folder: pathlib.Path) -> str:
    """Returns why somebody else could change the content of a folder, '' if nobody can.

    The administrator is nobody else. A folder above may be writable for its group, which is often
    the user alone.
    """
    user, real = os.geteuid(), folder.resolve()
    for path in (real, *real.parents):
        status = path.stat()
        allowed = (user,) if path == real else (user, 0)
        if status.st_uid not in allowed:
            return f"{str(path)!r} belongs to user {status.st_uid}"
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            return f"everybody can write to {str(path)!r}"
    for path in real.iterdir():
        if (owner := path.lstat().st_uid) != user:
            return f"{str(path)!r} belongs to user {owner}"
    return ""
