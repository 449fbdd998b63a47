"""A network that is quick to run, images, and clients of a server, good and bad ones."""

import io
import json
import socket
import struct
import threading
import zlib
from collections.abc import Callable
from typing import Any
from wsgiref.util import setup_testing_defaults

import numpy as np
from PIL import Image

from flaxres.serving.app import App
from flaxres.serving.model import Crop, Model

SIZE = 8
CROP = Crop(SIZE, SIZE, "bilinear", True)
RAW = "application/x-raw-rgb"


def levels(images: np.ndarray) -> np.ndarray:
    """Returns the mean of each channel, in [0, 1]."""
    return images.mean((1, 2), dtype=np.float32) / 255


def app(program: Callable[[np.ndarray], np.ndarray] = levels, **options: int) -> App:
    """Returns the application of a network whose likeliest class is the brightest channel."""
    given = {"largest_batch": 4, "queue": 64, "largest_body": 1_000_000} | options
    return App(Model(CROP, ("red", "green", "blue"), program), **given)


class Gate:
    """A program that waits until it is opened, and notes the shapes of its batches."""

    def __init__(self) -> None:
        self.open, self.entered = threading.Event(), threading.Event()
        self.sizes: list[int] = []

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.sizes.append(len(images))
        self.entered.set()
        assert self.open.wait(20)
        return levels(images)


def png(image: Image.Image) -> bytes:
    """Returns an image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=image.getexif())
    return buffer.getvalue()


def coloured(name: str) -> bytes:
    """Returns a PNG of one colour: red, green or blue."""
    return png(Image.new("RGB", (12, 9), name if name != "green" else "lime"))


def bomb() -> bytes:
    """Returns a PNG of a few bytes whose header promises 20,000 x 20,000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def ask(
    served: App, body: bytes = b"", path: str = "/", method: str = "POST", **fields: Any
) -> tuple[int, Any, dict[str, str]]:
    """Calls an application; returns the status, the content (parsed if JSON), and the headers.

    Args:
      served: the application.
      body: of the request.
      path: of the request, with the query.
      method: of the request.
      **fields: entries of the environment; None deletes one.
    """
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    path, _, query = path.partition("?")
    environ |= {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query}
    environ |= {"CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)} | fields
    reply: list[Any] = []
    content = b"".join(
        served(
            {name: value for name, value in environ.items() if value is not None},
            lambda status, headers: reply.extend((status, dict(headers))),
        )
    )
    status, headers = reply
    as_json = headers["Content-Type"].startswith("application/json") and content
    return int(status[:3]), json.loads(content) if as_json else content.decode(), headers


def request(body: bytes, *headers: str, length: int | str | None = None) -> bytes:
    """Returns the bytes of a POST."""
    length = len(body) if length is None else length
    lines = ["POST / HTTP/1.1", "Host: test", f"Content-Length: {length}", *headers]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def response(connection: socket.socket) -> tuple[int, Any]:
    """Returns the status and the JSON of a response; 0 if the server closed without one."""
    data = b""
    while part := connection.recv(1 << 16):
        data += part
    if not data:
        return 0, None
    head, _, content = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(content)


def post(address: tuple[str, int], body: bytes, *headers: str) -> tuple[int, Any]:
    """Sends a request on a new connection; returns the status and the JSON of the response."""
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(request(body, *headers))
        return response(connection)
