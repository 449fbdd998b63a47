"""Serves by waitress, which reads slow clients in one thread and hands whole requests to others."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
import time
from typing import Any

from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.server import create_server
from waitress.task import ErrorTask

from .app import App, Reply, refused
from .bodies import cut_short, too_large
from .errors import RequestError
from .sockets import (
    CONNECTIONS,
    GRACE_SECONDS,
    QUEUED_CONNECTIONS,
    SILENT_SECONDS,
    Pace,
    linger_apart,
)


def serve(app: App, listening: socket.socket, threads: int, stop: threading.Event) -> None:
    """Serves until `stop` is set, and then until the requests that wait are done.

    Args:
      app: the application.
      listening: a bound socket.
      threads: number of requests that are handled at once.
      stop: may be set by a signal handler or another thread.
    """
    logging.getLogger("waitress").setLevel(logging.ERROR)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    sockets: dict[int, Any] = {}
    server = create_server(
        app,
        map=sockets,
        sockets=[listening],
        threads=threads,
        ident="flaxres",
        backlog=QUEUED_CONNECTIONS,
        connection_limit=CONNECTIONS,
        channel_timeout=SILENT_SECONDS,
        cleanup_interval=5,
        recv_bytes=1 << 16,
        max_request_body_size=app.largest_body + 1,
        asyncore_use_poll=True,
        log_socket_errors=False,
    )
    server.channel_class = type("Channel", (_Channel,), {"app": app})
    app.backlog = lambda: len(server.task_dispatcher.queue)
    while not stop.is_set():
        wasyncore.loop(0.25, use_poll=True, map=sockets, count=1)
    _drain(server, sockets)
    server.task_dispatcher.shutdown(timeout=1)
    wasyncore.close_all(sockets)


def _drain(server: Any, sockets: dict[int, Any]) -> None:
    """Accepts no further connections, and serves what the present ones have sent."""
    while len(sockets) < CONNECTIONS and select.select([server.socket], [], [], 0)[0]:
        server.handle_accept()
    server.del_channel()
    server.socket.close()
    end = time.monotonic() + GRACE_SECONDS
    idle = 0
    while idle < 3 and time.monotonic() < end:
        wasyncore.loop(0.05, use_poll=True, map=sockets, count=1)
        idle = 0 if any(map(_busy, list(server.active_channels.values()))) else idle + 1


def _busy(channel: Any) -> bool:
    """Returns True if a request waits for its response, or is just being received."""
    receiving = channel.request is not None and time.time() - channel.last_activity < 1
    return bool(channel.requests or channel.total_outbufs_len or receiving)


class _ErrorTask(ErrorTask):  # type: ignore[misc]  # waitress has no types
    """The response to a request that waitress refuses, in the form of the application's errors."""

    def execute(self) -> None:
        reply = self.channel.rejection(self.request)
        self.status = reply.line
        self.response_headers.extend(reply.fields())
        self.set_close_on_finish()
        self.content_length = len(reply.body)
        self.write(reply.body)
        self.channel.lingers = True


class _Channel(HTTPChannel):  # type: ignore[misc]  # waitress has no types
    """A connection whose client reads why its request is refused.

    Attributes:
      app: the application.
      request: the one that is being received.
      pace: of that request, if there is one.
      lingers: the client is still to read a response.
    """

    app: App
    request: Any = None
    error_task_class = _ErrorTask
    pace: Pace
    lingers = False

    def received(self, data: bytes) -> bool:
        """Parses what the client sent; a client that is too slow is given up."""
        before = self.request
        went_on: bool = super().received(data)
        if self.request is not None:
            if self.request is not before:
                self.pace = Pace()
            self.pace.count(len(data))
            if self.pace.left < 0:
                self.will_close = True
        return went_on

    def rejection(self, request: Any) -> Reply:
        """Returns the response to a request with an error, and counts it."""
        error = request.error
        if error.code == 413:
            length = request.content_length or request.body_bytes_received
            rejection = too_large(length, self.app.largest_body)
        else:
            rejection = RequestError(error.code, f"{error.body}: send a valid HTTP/1.1 request")
        self.app.metrics.count(rejection.status)
        return refused(rejection)

    def handle_close(self) -> None:
        """Closes the connection; a client that stopped in the middle of a request is told so."""
        request, self.request = self.request, None
        if request is not None and self.connected and not (self.lingers or self.requests):
            self._send_cut_short(request)
        if self.lingers:
            linger_apart(self.socket)
        super().handle_close()

    def _send_cut_short(self, request: Any) -> None:
        rejection = RequestError(400, "the request ended early: send all of it")
        if request.content_length:
            rejection = cut_short(request.body_bytes_received, request.content_length)
        if self.will_close:  # the client was silent for too long, or too slow
            rejection = RequestError(408, str(rejection))
        self.app.metrics.count(rejection.status)
        reply = refused(rejection)
        fields = [*reply.fields(), ("Connection", "close")]
        head = "\r\n".join([f"HTTP/1.1 {reply.line}", *(f"{k}: {v}" for k, v in fields)])
        with contextlib.suppress(OSError):
            self.socket.send(head.encode("latin-1") + b"\r\n\r\n" + reply.body)
            self.lingers = True
