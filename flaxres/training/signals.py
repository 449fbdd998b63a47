"""Signals and time limits that ask a run to stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Preempted(SystemExit):
    """A signal or a time limit stopped the run and the state is saved: exit code 75.

    The same command, started again, resumes the run.

    Attributes:
      step: the step that is saved.
    """

    def __init__(self, step: int) -> None:
        super().__init__(75)
        self.step = step


class Stop(threading.Event):
    """An event that asks a run to stop.

    Attributes:
      reason: the cause, for a message; another process's where this one was not asked.

    Examples:
      >>> stop = Stop()
      >>> stop.ask("a signal")
      >>> stop.is_set(), stop.reason
      (True, 'a signal')
    """

    reason = "another process"

    def ask(self, reason: str) -> None:
        """Sets the event."""
        self.reason = reason
        self.set()


@contextlib.contextmanager
def time_limit(stop: Stop, minutes: float | None) -> Iterator[None]:
    """Sets an event once some minutes have passed; None is never."""
    if minutes is None:
        yield
        return
    timer = threading.Timer(60 * minutes, stop.ask, [f"train.stop_after_minutes={minutes:g}"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Yields an event that SIGTERM and SIGINT set, and SIGHUP, unless `nohup` ignores it.

    A second signal has the effect that it would have without us. Only the main thread can listen
    to signals; in others the event is never set.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    if (hangup := signal.getsignal(signal.SIGHUP)) is not signal.SIG_IGN:  # a terminal that closes
        before[signal.SIGHUP] = hangup

    def handle(number: int, frame: Any) -> None:
        stop.ask("a signal")
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
