"""The lock of a workdir as a file."""

import contextlib
import fcntl
import os
import pathlib
import uuid
from collections.abc import Iterator

from flaxres.training.lock_holder import Holder, from_json
from flaxres.training.workdir import write_errors


class LockFile:
    """A lock.json in a folder, also on a network file system.

    Args:
      path: the file.
    """

    # Without locks of the kernel, a process that judged the same dead holder may just have begun
    # to remove a file.
    settle_seconds = 0.2

    def __init__(self, path: pathlib.Path) -> None:
        self.path, self.workdir = path, str(path.parent)

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """Names the file in the error of a failed write."""
        return write_errors(self.path)

    def read(self) -> Holder | None:
        """Returns the holder that the file names, None if there is none or it can't be parsed."""
        try:
            return from_json(self.path.read_bytes())
        except FileNotFoundError:
            return None

    def exists(self) -> bool:
        """Returns True if there is a file, whatever it holds."""
        return self.path.exists()

    def create(self, holder: Holder) -> bool:
        """Creates the file with its content in one step; returns False if it exists."""
        part = self.path.with_name(f"{self.path.name}.{holder.token}")
        try:
            part.write_bytes(holder.to_json())
            try:
                # Also on NFS only one process makes the link.
                self.path.hardlink_to(part)
            except FileExistsError:
                return False
            except OSError:  # a file system without links
                return self._create_exclusively(part)
            return True
        finally:
            part.unlink(missing_ok=True)

    def _create_exclusively(self, part: pathlib.Path) -> bool:
        try:
            with self.path.open("xb") as file:
                file.write(part.read_bytes())
        except FileExistsError:
            return False
        return True

    def beat(self, holder: Holder) -> None:
        """Gives a sign of life."""
        os.utime(self.path)

    def times(self) -> tuple[float, float]:
        """Returns the time of the last sign of life, and the present time of the file system.

        The latter may differ from that of this machine. FileNotFoundError if there is no file.
        """
        beat = self.path.stat().st_mtime
        probe = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}")
        try:
            probe.touch()
            return beat, probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def remove(self, judged: Holder | None) -> None:
        """Removes the lock of a dead process; leaves one that another process has taken since."""
        with self._alone(), contextlib.suppress(FileNotFoundError):
            if self.read() == judged:
                self.path.unlink()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps others from removing a lock at the same time, where the file system can."""
        handle = os.open(self.path.parent, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)
