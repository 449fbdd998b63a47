"""Ends a process that no longer moves, and says where it stood."""

import faulthandler
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable

import jax

EXIT_STUCK = 70


class Watchdog:
    """A thread that ends the process with code 70 when nothing was heard for `limit` seconds; a limit of 0 never does. A context manager.

    `at` says what is about to be done, which starts the time anew. `saving_since` tells when a save began that runs beside, on the monotonic clock,
    or None. The stacks of all threads go to `stacks.txt` in `folder`.
    """

    def __init__(self, folder: pathlib.Path, limit: float, saving_since: Callable[[], float | None] = lambda: None) -> None:
        self.folder, self.limit, self.saving_since = folder, limit, saving_since
        self.what, self.since = "the start", time.monotonic()
        self.ended = threading.Event()
        if limit:
            threading.Thread(target=self.watch, name="flaxres-watchdog", daemon=True).start()

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()

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
        path = self.folder / ("stacks.txt" if jax.process_count() == 1 else f"stacks-{jax.process_index()}.txt")
        try:
            with path.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError:
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        print(
            f"flaxres: {what} has not moved for {seconds:.0f} seconds (train.watchdog_seconds={self.limit:g}); stacks are in {path}. "
            "What was saved is intact: start the same command again to go on",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_STUCK)
