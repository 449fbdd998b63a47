"""The lock of a workdir: only one run at a time writes there."""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator

from flaxres.errors import InputError
from flaxres.training import hosts
from flaxres.training.workdir import LOCK, write_errors

BEAT_SECONDS = 10.0
SETTLE_SECONDS = 0.2
STALE_SECONDS = 60.0
"""A lock of another machine without a beat for this long belongs to a dead process."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that holds a lock, as written in lock.json.

    Attributes:
      host: name of its host.
      pid: number of the process.
      since: time at which it took the lock, with the time zone.
      machine: start of the kernel and namespace of process numbers; '' without /proc.
      started: start of the process, in ticks since the kernel's start; it tells a process from a
        later one with the same number.
      token: a random word of this lock.
    """

    host: str
    pid: int
    since: str
    machine: str
    started: str
    token: str

    def describe(self) -> str:
        """Returns the holder in words."""
        return f"process {self.pid} on {self.host} since {self.since}"


class Lock:
    """The lock that this process holds.

    Attributes:
      path: its file.
      holder: this process.
      taken_by: the process that took the lock away, or None. It may do so when this process gave
        no sign of life for `STALE_SECONDS`, for example while its machine slept.
    """

    def __init__(self, path: pathlib.Path, holder: Holder) -> None:
        self.path, self.holder = path, holder
        self.taken_by: Holder | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="flaxres-lock", daemon=True)
        self._thread.start()

    def require(self) -> None:
        """Checks that this process still holds the lock.

        Raises:
          InputError: another process took it.
        """
        self._look()
        if self.taken_by is not None:
            raise InputError(
                f"workdir {str(self.path.parent)!r} was taken over by {self.taken_by.describe()}, "
                "because this process gave no sign of life: leave it to that run"
            )

    def release(self) -> None:
        """Stops the beats and removes the file."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if _read(self.path) == self.holder:
                self.path.unlink()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            # The network may be away for a while; only another holder is final.
            with contextlib.suppress(OSError):
                self._look()
                if self.taken_by is None:
                    os.utime(self.path)

    def _look(self) -> None:
        """Reads the file; writes it again where somebody deleted it."""
        with contextlib.suppress(OSError):
            current = _read(self.path)
            if current is None and not self.path.exists():
                _create(self.path, self.holder)
            elif current is not None and current != self.holder:
                self.taken_by = current


@contextlib.contextmanager
def lock_workdir(folder: pathlib.Path) -> Iterator[Lock | None]:
    """Holds the lock of a workdir for one run; the first of its processes holds it for all.

    A lock of a process that was killed is taken over: at once on the same machine, on another one
    as soon as it has given no sign of life for `STALE_SECONDS`. Times are those of the file system,
    not of the machines. No library did all of this: `filelock`, for example, relies on locks of the
    kernel, which some network file systems lack or keep to one machine, and names no holder.

    Args:
      folder: the workdir.

    Yields:
      The lock; None in the other processes.

    Raises:
      InputError: another run holds the lock; the message names it.
      WriteError: the file can't be written.
    """
    lock = hosts.leader_first(lambda: acquire(folder / LOCK) if hosts.leader() else None)
    try:
        yield lock
    finally:
        if lock is not None:
            lock.release()


def acquire(path: pathlib.Path) -> Lock:
    """Takes the lock at `path`; see `lock_workdir`."""
    ours = _this_process()
    watched: tuple[int, float] | None = None
    removed = False
    while True:
        with write_errors(path):
            if _create(path, ours):
                # Without locks of the kernel, a process that judged the same dead one may just now
                # remove our file.
                time.sleep(SETTLE_SECONDS if removed else 0)
                if _read(path) == ours:
                    return Lock(path, ours)
                continue
            try:
                beat, now = path.stat().st_mtime_ns, _file_system_time(path)
                holder = _read(path)
            except FileNotFoundError:
                continue
        dead = _is_dead(holder)
        if dead is False:
            raise _refusal(path, holder)
        if dead is None:
            if watched is None:
                watched = beat, time.monotonic()
            if beat != watched[0]:
                raise _refusal(path, holder)
            waited = time.monotonic() - watched[1]
            if max(now - beat / 1e9, waited) < STALE_SECONDS:
                time.sleep(min(1.0, STALE_SECONDS / 10))
                continue
        with write_errors(path):
            _remove(path, holder)
            removed = True


def _refusal(path: pathlib.Path, holder: Holder | None) -> InputError:
    who = holder.describe() if holder else "another process"
    return InputError(
        f"workdir {str(path.parent)!r} is written to by {who}: wait until that run ends, stop it, "
        "or give another --workdir"
    )


def _this_process() -> Holder:
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    host, pid = socket.gethostname(), os.getpid()
    return Holder(host, pid, since, _machine(), _started(pid) or "", uuid.uuid4().hex)


def _machine() -> str:
    """Returns what tells this machine, and this container, from others; '' if nothing does."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return f"{boot.strip()} {pathlib.Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Returns the start of a process in ticks, '' if it has ended, None if it can't be seen."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2]
    except OSError:
        return None
    fields = text.decode("ascii").split()
    return "" if fields[0] in "ZX" else fields[19]


def _is_dead(holder: Holder | None) -> bool | None:
    """Returns True or False for a process of this machine, None for another one."""
    if holder is None or not holder.machine or holder.machine != _machine():
        return None
    started = _started(holder.pid)
    if started is None:
        # /proc may hide the processes of other users.
        try:
            os.kill(holder.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return None
    return started != holder.started


def _read(path: pathlib.Path) -> Holder | None:
    """Returns the holder that a file names, None if there is none or it can't be parsed."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _create(path: pathlib.Path, holder: Holder) -> bool:
    """Creates the file with its content in one step; returns False if it exists."""
    part = path.with_name(f"{path.name}.{holder.token}")
    try:
        part.write_text(json.dumps(dataclasses.asdict(holder)) + "\n", encoding="utf-8")
        try:
            # Also on NFS only one process makes the link.
            path.hardlink_to(part)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            return _create_exclusively(path, part)
        return True
    finally:
        part.unlink(missing_ok=True)


def _create_exclusively(path: pathlib.Path, part: pathlib.Path) -> bool:
    try:
        with path.open("xb") as file:
            file.write(part.read_bytes())
    except FileExistsError:
        return False
    return True


def _file_system_time(path: pathlib.Path) -> float:
    """Returns the time of the file system, which may differ from that of this machine."""
    probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _remove(path: pathlib.Path, judged: Holder | None) -> None:
    """Removes the lock of a dead process; leaves one that another process has taken since."""
    with _alone(path.parent), contextlib.suppress(FileNotFoundError):
        if _read(path) == judged:
            path.unlink()


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from removing a lock at the same time, where the file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
