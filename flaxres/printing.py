"""Printing that never ends a run: the reader may be gone, the disk full, the terminal in ASCII."""

import contextlib
import errno
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TextIO


class SafeStream(io.TextIOBase):
    """A text stream that keeps the first error in place of raising it.

    Characters that the encoding lacks are written as escapes.

    Args:
      stream: returns the stream to write to; None is nowhere.

    Attributes:
      failure: the first error, or None.
    """

    def __init__(self, stream: Callable[[], TextIO | None]) -> None:
        super().__init__()
        self._stream = stream
        self.failure: Exception | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream."""
        return getattr(self._stream(), "encoding", None) or "utf-8"

    def writable(self) -> bool:
        """Returns True."""
        return True

    def isatty(self) -> bool:
        """Returns True for a terminal."""
        stream = self._stream()
        try:
            return stream is not None and stream.isatty()
        except ValueError:  # it is closed
            return False

    def fileno(self) -> int:
        """Returns the number of the file; raises OSError where there is none."""
        stream = self._stream()
        return super().fileno() if stream is None else stream.fileno()

    def write(self, text: str) -> int:
        """Writes as far as it is possible; returns the length of the text."""
        if (stream := self._stream()) is None:
            return len(text)
        try:
            try:
                stream.write(text)
            except UnicodeEncodeError:
                name = self.encoding
                stream.write(text.encode(name, "backslashreplace").decode(name))
        except (OSError, ValueError) as error:
            self.failure = self.failure or error
        return len(text)

    def flush(self) -> None:
        """Writes out what the stream holds back."""
        if (stream := self._stream()) is None:
            return
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            self.failure = self.failure or error


def _current_stderr(system: Any = sys) -> TextIO | None:
    """Returns the present sys.stderr, below the proxy of a live display.

    The interpreter flushes streams at its end, when the names of this module are gone: `sys` is
    therefore a default.
    """
    stream: TextIO | None = getattr(system.stderr, "rich_proxied_file", system.stderr)
    return stream


STDERR: Any = SafeStream(_current_stderr)
"""The stderr of the moment, which tests and notebooks replace."""


def say(line: str) -> None:
    """Prints a line on stderr; never raises.

    Examples:
      >>> say("step 3 is saved")
    """
    if sys.stderr is not None:
        _print(line, sys.stderr)


def _print(line: str, stream: TextIO) -> None:
    safe = SafeStream(lambda: stream)
    safe.write(line + "\n")
    safe.flush()


def say_last(line: str, code: int) -> NoReturn:
    """Prints a line on stderr as the last one, and ends the process with an exit code.

    Other threads still run, and may print about the same error: what they print from now on goes
    nowhere. An orderly exit would wait for them, or they would complain about it.
    """
    if (stream := sys.stderr) is not None:
        safe = SafeStream(lambda: stream)
        with contextlib.suppress(OSError, ValueError):
            kept = os.dup(safe.fileno())
            _discard(safe)
            time.sleep(0.1)  # a write that another thread has begun still reaches the reader
            stream = os.fdopen(kept, "w", encoding=safe.encoding)
        _print(line, stream)
    if (output := sys.stdout) is not None:
        SafeStream(lambda: output).flush()
    os._exit(code)


@contextlib.contextmanager
def safe_streams() -> Iterator[Callable[[], str]]:
    """Lets nothing that is printed end the command.

    Yields:
      A function that flushes, and returns why output on stdout was lost: '' if it was not, or if
      only the reader had enough of it.
    """
    _open_standard_files()
    before = sys.stdout, sys.stderr
    out, err = (SafeStream(lambda stream=stream: stream) for stream in before)  # type: ignore[misc]

    def lost() -> str:
        out.flush()
        failure = out.failure
        if failure is None or getattr(failure, "errno", None) == errno.EPIPE:
            return ""
        return getattr(failure, "strerror", None) or str(failure)

    sys.stdout, sys.stderr = out, err
    try:
        yield lost
    finally:
        sys.stdout, sys.stderr = before
        for safe in (out, err):
            safe.flush()
            if safe.failure is not None:
                _discard(safe)


def _open_standard_files() -> None:
    """Opens closed standard files on /dev/null.

    Otherwise the next file, for example a checkpoint, gets the number of stderr, and libraries
    print into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            if (opened := os.open(os.devnull, os.O_RDWR)) != number:
                os.dup2(opened, number)
                os.close(opened)


def _discard(safe: SafeStream) -> None:
    """Throws away what can't be written, which the interpreter's end would complain about."""
    with contextlib.suppress(OSError, ValueError):
        number = safe.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
        safe.flush()
