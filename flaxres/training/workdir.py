"""Files of a workdir, written so that a kill leaves the old ones or the new ones."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from flaxres.errors import InputError, WriteError
from flaxres.paths import replacing

CONFIG, CHECKPOINTS, PROFILE = "config.json", "checkpoints", "profile"
METRICS, SUMMARY, CURVES = "metrics.jsonl", "summary.json", "curves.png"
LOCK, CLASSES, RUN = "lock.json", "classes.json", "run.json"


def replace_file(path: pathlib.Path, text: str) -> None:
    """Writes a file in one step: a reader, or a kill, meets the old content or the new.

    Raises:
      WriteError: the file can't be written.
    """
    with write_errors(path), replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def write_errors(path: pathlib.Path) -> Iterator[None]:
    """Turns OSError, which may not name the file, into WriteError, which does."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"{path} can't be written ({error.strerror or str(error)}); what was saved is intact: "
            "make room and start the same command again"
        ) from error


def require_writable(workdir: pathlib.Path) -> None:
    """Checks that files can be written into `workdir`.

    Leaves no trace: a run that is refused later makes no folder.

    Raises:
      InputError: nothing can be written there.
    """
    probe = workdir / f".writable-{os.getpid()}"
    try:
        created = [path for path in (workdir, *workdir.parents) if not path.exists()]
        workdir.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
        for path in created:
            path.rmdir()
    except OSError as error:
        raise InputError(
            f"workdir {str(workdir)!r} can't be written ({error.strerror}): give another --workdir"
        ) from error
