"""Signals that ask a run to stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Preempted(SystemExit):
    """SIGTERM, SIGINT or SIGHUP arrived and the state is saved: exit code 75.

    The same command, started again, resumes the run.

    Attributes:
      step: the step that is saved.
    """

    def __init__(self, step: int) -> None:
        super().__init__(75)
        self.step = step


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Yields an event that SIGTERM and SIGINT set, and SIGHUP, unless `nohup` ignores it.

    A second signal has the effect that it would have without us. Only the main thread can listen
    to signals; in others the event is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    if (hangup := signal.getsignal(signal.SIGHUP)) is not signal.SIG_IGN:  # a terminal that closes
        before[signal.SIGHUP] = hangup

    def handle(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
