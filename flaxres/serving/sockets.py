"""Sockets of the servers: binding a port, slow clients, and closing so that responses are read."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from .errors import StartError

# Connections at once; more wait in the kernel's queue. A connection takes up to three files, and
# processes often may open 1,024.
CONNECTIONS = 300
QUEUED_CONNECTIONS = 1024
# A client that sends nothing for so long is given up, and one that sends a request slower than so
# many bytes a second on average after that time.
SILENT_SECONDS, LEAST_RATE = 30, 1000
# The requests that wait when the server is stopped have so long.
GRACE_SECONDS = 20
LINGER_SECONDS, LINGERING = 2.0, 32

_lingering = threading.BoundedSemaphore(LINGERING)


def bound(host: str, port: int) -> socket.socket:
    """Returns a socket that has a port, and does not listen yet.

    Args:
      host: a name or an address of this machine.
      port: the port; 0 takes a free one.

    Raises:
      StartError: the port is taken, or the host is not of this machine.

    Examples:
      >>> with bound("127.0.0.1", 0) as free:
      ...     free.getsockname()[0]
      '127.0.0.1'
    """
    made: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        # A server that has just ended leaves connections that would hold the port for a minute.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        return made
    except (OSError, OverflowError, UnicodeError) as error:
        if made is not None:
            made.close()
        raise taken(host, port, error) from error


def taken(host: str, port: int, error: Exception) -> StartError:
    """Returns the error for an address that can't be used."""
    reason = getattr(error, "strerror", None) or error
    return StartError(
        f"port {port} of {host} can't be used ({reason}): end the process that has it, or give "
        "another --port or --host"
    )


def address_of(listening: socket.socket) -> str:
    """Returns the URL of a socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Pace:
    """The time that a client has left to send its request.

    Each byte adds to the time, so that a large body may take long, and a client that sends a byte
    now and then can't hold its connection.

    Examples:
      >>> pace = Pace()
      >>> pace.count(60_000)
      >>> 89 < pace.left <= 90
      True
    """

    def __init__(self) -> None:
        self._end = time.monotonic() + SILENT_SECONDS

    @property
    def left(self) -> float:
        """Seconds left, below zero if the client is too slow."""
        return self._end - time.monotonic()

    def count(self, received: int) -> None:
        """Adds the time of some bytes."""
        self._end += received / LEAST_RATE


def linger(connection: socket.socket) -> None:
    """Closes a connection once the client has closed it, or after two seconds.

    What the client still sends is thrown away. A socket that is closed before has its connection
    reset, and the client, still sending, may not read the response.

    Args:
      connection: a socket on which the whole response was sent.
    """
    end = time.monotonic() + LINGER_SECONDS
    with connection, contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        while (rest := end - time.monotonic()) > 0:
            connection.settimeout(rest)
            if not connection.recv(1 << 16):
                return


def linger_apart(connection: socket.socket) -> None:
    """Calls `linger` on a copy of a socket in a thread; only closes it if many threads do so."""
    if not _lingering.acquire(blocking=False):
        return
    try:
        copy = connection.dup()
    except OSError:
        _lingering.release()
        return

    def run() -> None:
        try:
            linger(copy)
        finally:
            _lingering.release()

    threading.Thread(target=run, daemon=True).start()
