"""Ends a process that no longer makes progress, and reports where it stood."""

import faulthandler
import pathlib
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

import jax

from flaxres.printing import say_last

EXIT_STUCK = 70


class Watchdog:
    """Ends the process with code 70 if nothing was reported for some time. A context manager.

    The stacks of all threads go to `stacks.txt` in the workdir, or to `stacks-I.txt` for process I
    of several. JAX ends a process whose peers are gone; the file is written then too.

    Args:
      folder: the workdir.
      limit: seconds; 0 never ends the process.
      saving_since: returns the start of the save under way, on the monotonic clock, or None.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        limit: float,
        saving_since: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.folder, self.limit, self.saving_since = folder, limit, saving_since
        self.what, self.since = "the start", time.monotonic()
        self.stacks = folder / (
            "stacks.txt" if jax.process_count() == 1 else f"stacks-{jax.process_index()}.txt"
        )
        self.file: TextIO | None = None
        self.ended = threading.Event()
        if limit:
            threading.Thread(target=self.watch, name="flaxres-watchdog", daemon=True).start()

    def __enter__(self) -> "Watchdog":
        # Where another process of the run is gone, JAX aborts this one from C++. The handler of
        # that signal then writes the stacks.
        if jax.process_count() > 1:
            self.file = self.stacks.open("w")
            faulthandler.enable(self.file)
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        if self.file is not None:
            faulthandler.disable()
            self.file.close()
            self.stacks.unlink(missing_ok=True)

    def at(self, what: str) -> None:
        """Reports what is about to be done, which starts the time again."""
        self.what, self.since = what, time.monotonic()

    def watch(self) -> None:
        """Checks the time until the run ends; runs in a thread."""
        while not self.ended.wait(min(self.limit / 10, 10)):
            now, saving = time.monotonic(), self.saving_since()
            if saving is not None and now - saving > self.limit:
                self.end("a save", now - saving)
            elif now - self.since > self.limit:
                self.end(self.what, now - self.since)

    def end(self, what: str, seconds: float) -> None:
        """Writes the stacks and ends the process."""
        try:
            self._write_stacks()
        finally:
            say_last(self._message(what, seconds), EXIT_STUCK)

    def _write_stacks(self) -> None:
        try:
            with self.stacks.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError:
            if sys.stderr is not None:
                faulthandler.dump_traceback(sys.stderr, all_threads=True)

    def _message(self, what: str, seconds: float) -> str:
        return (
            f"flaxres: {what} has not moved for {seconds:.0f} seconds "
            f"(train.watchdog_seconds={self.limit:g}); stacks are in {self.stacks}. "
            "What was saved is intact: start the same command again to resume"
        )
