"""The loggers of a run: the failure of one is said once, and the run goes on."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator

from flaxres.training.loggers import End, Facts, Kind, Logger

CLOSE_SECONDS = 30.0
"""Time that the end of a process waits for a server that does not answer."""
WAITING = 2**14
"""Rows that may wait for a server; with more, the logger is dropped."""


class Sink:
    """A logger that is called in place, and dropped at its first error.

    Args:
      kind: the kind of logger.
      facts: on the run.
      say: gets the line about the error.
    """

    def __init__(self, kind: Kind, facts: Facts, say: Callable[[str], None]) -> None:
        self.name, self.say = kind.name, say
        self.log: Logger | None = None
        self._start(kind, facts)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes the metrics of a step."""
        self._do(lambda log: log.write(step, values))

    def flush(self) -> None:
        """Writes out pending metrics."""
        self._do(lambda log: log.flush())

    def close(self, end: End) -> None:
        """Ends the log."""
        self._do(lambda log: log.close(end))

    def _start(self, kind: Kind, facts: Facts) -> None:
        with self._guarded():
            self.log = kind.make(facts)

    def _do(self, action: Callable[[Logger], None]) -> None:
        """Calls `action` with the logger, if it has not failed."""
        if self.log is not None:
            with self._guarded():
                action(self.log)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of many types: files, the network, the account
            self._drop(" ".join(str(error).split()) or type(error).__name__)

    def _drop(self, reason: str) -> None:
        self._tell(reason)
        failed, self.log = self.log, None
        if failed is not None:
            with contextlib.suppress(Exception):
                failed.abandon()

    def _tell(self, reason: str) -> None:
        self.say(f"{self.name} gets no more metrics ({reason}); metrics.jsonl gets all of them")


class BackgroundSink(Sink):
    """A logger that may wait for a server: a thread of its own makes and calls it.

    The thread flushes whenever no row waits, so that a slow server gets fewer, larger requests.
    MLflow's client tries to reach a server for four minutes, that of Weights & Biases for 100 s.

    Args:
      kind: the kind of logger.
      facts: on the run.
      say: gets the line about the error.
    """

    def __init__(self, kind: Kind, facts: Facts, say: Callable[[str], None]) -> None:
        self._rows: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(WAITING)
        self._left = False
        self._end: End = "failed"
        super().__init__(kind, facts, say)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Hands the metrics of a step to the thread."""
        self._put((step, values))

    def flush(self) -> None:
        """Does nothing: the training does not wait for a server."""

    def close(self, end: End) -> None:
        """Ends the log; waits `CLOSE_SECONDS` at most for what is not yet written."""
        self._end = end
        self._put(None)
        if not self._left:
            self._thread.join(CLOSE_SECONDS)
            if self._thread.is_alive():
                self._tell(f"no answer in {CLOSE_SECONDS:.0f} s")

    def _start(self, kind: Kind, facts: Facts) -> None:
        self._thread = threading.Thread(
            target=self._run, args=(kind, facts), name=f"flaxres-{kind.setting}", daemon=True
        )
        self._thread.start()

    def _run(self, kind: Kind, facts: Facts) -> None:
        super()._start(kind, facts)
        for step, values in facts.rows:
            super().write(step, values)
        while self.log and (row := self._rows.get()):
            super().write(*row)
            if self._rows.empty():
                super().flush()
        super().close(self._end)

    def _put(self, row: tuple[int, dict[str, float]] | None) -> None:
        if self._left:  # what follows a gap would hide it from the next process
            return
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            self._tell(f"{WAITING} rows wait for an answer")

    def _tell(self, reason: str) -> None:
        if not self._left:
            self._left = True
            super()._tell(reason)
