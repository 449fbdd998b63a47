"""Ends a process that no longer moves, and says where it stood."""

import faulthandler
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

import jax

EXIT_STUCK = 70


class Watchdog:
    """A thread that ends the process with code 70 when nothing was heard for `limit` seconds; a limit of 0 never does. A context manager.

    `at` says what is about to be done, which starts the time anew. `saving_since` tells when a save began that runs beside, on the monotonic clock,
    or None. The stacks of all threads go to `stacks.txt` in `folder`, or of process I of several to `stacks-I.txt`, which JAX's own end of a process
    whose peers are gone fills as well.
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
        # Where another process of the run is gone, JAX aborts this one, from C++: its stacks are then written by the handler of that signal.
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
        self.what, self.since = what, time.monotonic()

    def watch(self) -> None:
        while not self.ended.wait(min(self.limit / 10, 10)):
            now, saving = time.monotonic(), self.saving_since()
            if saving is not None and now - saving > self.limit:
                self.end("a save", now - saving)
            elif now - self.since > self.limit:
                self.end(self.what, now - self.since)

    def end(self, what: str, seconds: float) -> None:
        try:
            with self.stacks.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError:
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        print(
            f"flaxres: {what} has not moved for {seconds:.0f} seconds (train.watchdog_seconds={self.limit:g}); stacks are in {self.stacks}. "
            "What was saved is intact: start the same command again to go on",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_STUCK)
