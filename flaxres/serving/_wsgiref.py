"""Serves by the standard library, with a thread for each connection."""

from __future__ import annotations

import io
import select
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from .app import App, refused
from .errors import RequestError
from .sockets import (
    CONNECTIONS,
    GRACE_SECONDS,
    QUEUED_CONNECTIONS,
    SILENT_SECONDS,
    Pace,
    linger,
)


def serve(app: App, listening: socket.socket, stop: threading.Event) -> None:
    """Serves until `stop` is set, and then until the requests that wait are done.

    Args:
      app: the application.
      listening: a bound socket.
      stop: may be set by a signal handler or another thread.
    """
    server = _Server(app, listening)
    while not stop.is_set():
        if server.connections < CONNECTIONS:
            server.handle_request()
        else:
            time.sleep(0.01)
    while server.connections < CONNECTIONS and select.select([listening], [], [], 0)[0]:
        server.handle_request()
    server.server_close()
    # Connections whose clients are still sending may not end for long. A request that is handled
    # still has to be sent.
    _wait_until(lambda: not server.connections, 0.5)
    _wait_until(lambda: not app.active, GRACE_SECONDS)
    _wait_until(lambda: not server.connections, 0.5)


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Waits until a condition holds, at most for some seconds."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """The server of wsgiref, with a thread for each connection."""

    daemon_threads = True
    block_on_close = False
    timeout = 0.25  # of handle_request

    def __init__(self, app: App, listening: socket.socket) -> None:
        super().__init__(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_name, self.server_port = listening.getsockname()[:2]
        self.setup_environ()
        self.set_app(app)
        self.app = app
        self.connections, self._lock = 0, threading.Lock()
        listening.listen(QUEUED_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts the thread of a connection."""
        self._add(1)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handles a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._add(-1)

    def shutdown_request(self, request: Any) -> None:
        """Closes a connection so that the client reads the response."""
        linger(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints an error, unless it is that of a client that went away or is silent."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def _add(self, number: int) -> None:
        with self._lock:
            self.connections += number


class _Handler(WSGIRequestHandler):
    """One connection."""

    server: _Server
    timeout = SILENT_SECONDS

    def setup(self) -> None:
        """Makes the files of the connection; reading ends for a client that is too slow."""
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Paced(self.connection, self.timeout))

    def log_message(self, format: str, *arguments: Any) -> None:
        """Prints nothing: /metrics counts the requests."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuses a request that is not HTTP, in the form of the application's errors."""
        reply = refused(
            RequestError(int(code), f"{message or 'bad request'}: send a valid HTTP request")
        )
        self.server.app.metrics.count(reply.status)
        self.request_version = self.protocol_version  # HTTP/0.9 has no status line
        self.send_response(reply.status)
        for name, value in reply.fields():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)


class _Paced(io.RawIOBase):
    """Reads from a client; raises TimeoutError if the client is too slow.

    Args:
      connection: the client's socket.
      silent: seconds that a client may send nothing.
    """

    def __init__(self, connection: socket.socket, silent: float) -> None:
        self._connection, self._silent, self._pace = connection, silent, Pace()

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Reads into a buffer; returns the number of bytes."""
        if (left := self._pace.left) <= 0:
            raise TimeoutError
        self._connection.settimeout(min(left, self._silent))
        try:
            count = self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(self._silent)
        self._pace.count(count)
        return count
