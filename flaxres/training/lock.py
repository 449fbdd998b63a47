"""The lock of a workdir: only one run at a time writes there."""

import contextlib
import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from flaxres.errors import InputError
from flaxres.training import hosts
from flaxres.training.lock_file import LockFile
from flaxres.training.lock_holder import Holder, is_dead, this_process
from flaxres.training.workdir import LOCK

BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
"""A lock of another machine without a beat for this long belongs to a dead process."""


class Place(Protocol):
    """A lock.json, as `LockFile` or `LockObject`, with what they say of each method.

    Attributes:
      workdir: its workdir, for messages.
      settle_seconds: time after which a new lock stays, where another one was just removed.
    """

    workdir: str
    settle_seconds: float

    def writing(self) -> contextlib.AbstractContextManager[None]: ...
    def read(self) -> Holder | None: ...
    def exists(self) -> bool: ...
    def create(self, holder: Holder) -> bool: ...
    def beat(self, holder: Holder) -> None: ...
    def times(self) -> tuple[float, float]: ...
    def remove(self, judged: Holder | None) -> None: ...


class Lock:
    """The lock that this process holds.

    Attributes:
      place: its lock.json.
      holder: this process.
      taken_by: the process that took the lock away, or None. It may do so when this process gave
        no sign of life for `STALE_SECONDS`, for example while its machine slept.
    """

    def __init__(self, place: Place, holder: Holder) -> None:
        self.place, self.holder = place, holder
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
                f"workdir {self.place.workdir!r} was taken over by {self.taken_by.describe()}, "
                "because this process gave no sign of life: leave it to that run"
            )

    def release(self) -> None:
        """Stops the beats and removes the lock."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self.place.remove(self.holder)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            # The network may be away for a while; only another holder is final.
            with contextlib.suppress(OSError):
                self._look()
                if self.taken_by is None:
                    self.place.beat(self.holder)

    def _look(self) -> None:
        """Reads the lock; writes it again where somebody deleted it."""
        with contextlib.suppress(OSError):
            current = self.place.read()
            if current is None and not self.place.exists():
                self.place.create(self.holder)
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
    lock = hosts.leader_first(lambda: acquire(LockFile(folder / LOCK)) if hosts.leader() else None)
    try:
        yield lock
    finally:
        if lock is not None:
            lock.release()


def acquire(place: Place) -> Lock:
    """Takes the lock at a place; see `lock_workdir`."""
    ours = this_process()
    watched: tuple[float, float] | None = None
    removed = False
    while True:
        with place.writing():
            if place.create(ours):
                time.sleep(place.settle_seconds if removed else 0)
                if place.read() == ours:
                    return Lock(place, ours)
                continue
            try:
                beat, now = place.times()
                holder = place.read()
            except FileNotFoundError:
                continue
        dead = is_dead(holder)
        if dead is False:
            raise _refusal(place, holder)
        if dead is None:
            if watched is None:
                watched = beat, time.monotonic()
            if beat != watched[0]:
                raise _refusal(place, holder)
            waited = time.monotonic() - watched[1]
            if max(now - beat, waited) < STALE_SECONDS:
                time.sleep(min(1.0, STALE_SECONDS / 10))
                continue
        with place.writing():
            place.remove(holder)
            removed = True


def _refusal(place: Place, holder: Holder | None) -> InputError:
    who = holder.describe() if holder else "another process"
    return InputError(
        f"workdir {place.workdir!r} is written to by {who}: wait until that run ends, stop it, "
        "or give another --workdir"
    )
