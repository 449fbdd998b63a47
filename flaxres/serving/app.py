"""The WSGI application: paths, responses and errors, whichever server runs it."""

from __future__ import annotations

import json
import pathlib
import threading
import time
import traceback
import urllib.parse
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, NamedTuple

from .batches import Batches, QueueFullError
from .bodies import crops_of, read_body
from .errors import RequestError
from .metrics import Metrics
from .model import Model

TOP = 5
PAGE = pathlib.Path(__file__).with_name("page.html")
# The page needs nothing but itself and this server.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'"
)


class Reply(NamedTuple):
    """A response.

    Attributes:
      status: of HTTP.
      content_type: e.g. `application/json`.
      body: the content.
      headers: further headers.
    """

    status: int
    content_type: str
    body: bytes
    headers: dict[str, str]

    @property
    def line(self) -> str:
        """The status with its phrase, e.g. `200 OK`."""
        return f"{self.status} {HTTPStatus(self.status).phrase}"

    def fields(self) -> list[tuple[str, str]]:
        """Returns all headers."""
        about = {"Content-Type": self.content_type, "Content-Length": str(len(self.body))}
        safe = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        return list((about | safe | self.headers).items())


class App:
    """The WSGI application that serves a network.

    | path | method | response |
    |---|---|---|
    | `/`, `/predict` | POST | the likeliest classes of each image of the body; `?top=K` |
    | `/` | GET | a page to classify photographs with |
    | `/health` | GET | the network, once it is ready |
    | `/metrics` | GET | counts in the text format of Prometheus |

    Args:
      model: the network.
      largest_batch: most images of a batch.
      queue: most images that wait; further requests get 503.
      largest_body: of a request, bytes.

    Attributes:
      largest_body: of a request, bytes.
      metrics: the counts.
      batches: runs the network.
      active: number of requests that are being handled.
      backlog: returns the number of requests that wait for a thread; the server sets it.
    """

    def __init__(self, model: Model, largest_batch: int, queue: int, largest_body: int) -> None:
        self.largest_body = largest_body
        self.metrics = Metrics()
        self.batches = Batches(
            model.program, model.crop.size, largest_batch, queue, self.metrics.ran
        )
        self.active = 0
        self.backlog: Callable[[], int] = lambda: 0
        self._model, self._lock = model, threading.Lock()
        self._routes: dict[str, dict[str, Callable[[dict[str, Any]], Reply]]] = {
            "/": {"GET": self._page, "POST": self._predict},
            "/predict": {"POST": self._predict},
            "/health": {"GET": self._health},
            "/metrics": {"GET": self._metrics},
        }

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Handles a request, as PEP 3333 says."""
        began, method = time.perf_counter(), environ["REQUEST_METHOD"]
        self._add_active(1)
        try:
            reply = self._reply(environ, method)
        except RequestError as error:
            reply = refused(error)
        except Exception:
            traceback.print_exc(file=environ["wsgi.errors"])
            reply = refused(RequestError(500, "the network failed: see the server's log"))
        finally:
            self._add_active(-1)
        seconds = time.perf_counter() - began
        self.metrics.count(reply.status, seconds if method == "POST" else None)
        start_response(reply.line, reply.fields())
        return [] if method == "HEAD" else [reply.body]

    def _reply(self, environ: dict[str, Any], method: str) -> Reply:
        path = environ.get("PATH_INFO") or "/"
        if path not in self._routes:
            raise RequestError(404, f"no path {path!r}: choose from {', '.join(self._routes)}")
        methods = self._routes[path]
        if (handler := methods.get("GET" if method == "HEAD" else method)) is None:
            allowed = ", ".join(methods)
            raise RequestError(
                405, f"no method {method} for {path}: choose from {allowed}", Allow=allowed
            )
        return handler(environ)

    def _predict(self, environ: dict[str, Any]) -> Reply:
        top = _top(environ.get("QUERY_STRING", ""))
        if self.batches.waiting + self.backlog() >= self.batches.limit:
            raise _busy()
        body = read_body(environ, self.largest_body)
        content_type = environ.get("CONTENT_TYPE") or ""
        images = crops_of(content_type, body, self._model.crop, self.batches.limit)
        try:
            rows = self.batches.run(images)
        except QueueFullError as error:
            raise _busy() from error
        return _json(200, [self._model.best(row, top) for row in rows])

    def _page(self, environ: dict[str, Any]) -> Reply:
        headers = {"Content-Security-Policy": POLICY}
        return Reply(200, "text/html; charset=utf-8", PAGE.read_bytes(), headers)

    def _health(self, environ: dict[str, Any]) -> Reply:
        model = self._model
        facts = {"status": "ok", "size": model.crop.size, "classes": len(model.classes)}
        return _json(200, facts | {"max_bytes": self.largest_body, "waiting": self._waiting()})

    def _metrics(self, environ: dict[str, Any]) -> Reply:
        text = self.metrics.text(self._waiting())
        return Reply(200, "text/plain; version=0.0.4; charset=utf-8", text.encode(), {})

    def _add_active(self, number: int) -> None:
        with self._lock:
            self.active += number

    def _waiting(self) -> int:
        return self.batches.waiting + self.backlog()


def refused(error: RequestError) -> Reply:
    """Returns the response to a request that is refused."""
    return _json(error.status, {"error": str(error)}, error.headers)


def _json(status: int, content: Any, headers: dict[str, str] | None = None) -> Reply:
    body = json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    return Reply(status, "application/json; charset=utf-8", body, headers or {})


def _busy() -> RequestError:
    return RequestError(503, "too many requests wait: try again in a second", Retry_After="1")


def _top(query: str) -> int:
    """Returns the number of classes that a query asks for."""
    values = urllib.parse.parse_qs(query, keep_blank_values=True)
    if unknown := sorted(set(values) - {"top"}):
        raise RequestError(400, f"unknown parameter {unknown[0]!r}: the only one is top")
    given = values.get("top", [str(TOP)])[-1]
    if not (given.isascii() and given.isdigit() and len(given) < 10 and int(given)):
        raise RequestError(400, f"top={given!r}: the rule is a whole number, > 0")
    return int(given)
