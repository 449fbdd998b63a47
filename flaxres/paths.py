"""Paths that people give, and files written in one step."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator


def expanded(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns a path with `~` and `~user` replaced by the home folder.

    `~user` without such a user stays as it is. `pathlib.Path.expanduser` raises a RuntimeError.

    Examples:
      >>> expanded("~/runs") == pathlib.Path.home() / "runs"
      True
    """
    return pathlib.Path(os.path.expanduser(path))  # noqa: PTH111 (never raises)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path beside `path`, and moves the file written there to `path` at the end.

    A reader meets the old file or the new one, also after a kill. After an error `path` is as it
    was before.

    Args:
      path: the file; an existing one is replaced.

    Raises:
      OSError: the file can't be moved.

    Examples:
      >>> path = pathlib.Path(tempfile.mkdtemp(), "a.txt")
      >>> with replacing(path) as part:
      ...     _ = part.write_text("a")
      >>> [path.name for path in path.parent.iterdir()]
      ['a.txt']
    """
    part = path.with_name(path.name + ".part")
    try:
        yield part
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def completed(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields an empty folder, and moves its files to `folder` once all are written.

    After an error, `folder` is as it was before.

    Args:
      folder: the folder; it is created.

    Raises:
      OSError: it can't be written.

    Examples:
      >>> place = pathlib.Path(tempfile.mkdtemp())
      >>> with completed(place) as part:
      ...     _ = (part / "a.txt").write_text("a")
      >>> [path.name for path in place.iterdir()]
      ['a.txt']
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as name:
        part = pathlib.Path(name)
        yield part
        for path in [path for path in part.rglob("*") if path.is_file()]:
            target = folder / path.relative_to(part)
            target.parent.mkdir(exist_ok=True)
            path.replace(target)
