"""From the body of a request to the crops of its images."""

from __future__ import annotations

import email.message
import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from .crop import NoImageError, TooManyPixelsError
from .errors import RequestError
from .model import Crop

if TYPE_CHECKING:  # the folder of an export does not need it
    from jaxtyping import UInt8

RAW, FORM = "application/x-raw-rgb", "multipart/form-data"
FORMATS = "a JPEG, PNG, WebP, GIF, TIFF or BMP image"

# An image of many pixels takes some hundred megabytes while it is decoded.
_decoding = threading.BoundedSemaphore(os.cpu_count() or 1)


def read_body(environ: dict[str, Any], most: int) -> bytes:
    """Returns the body of a request.

    Args:
      environ: the WSGI environment.
      most: largest body in bytes.

    Raises:
      RequestError: the length is missing, invalid or too large, or the body ends early.
    """
    given = environ.get("CONTENT_LENGTH")
    if given in (None, ""):
        raise RequestError(411, "no Content-Length: send the length of the body in bytes")
    if not (given.isascii() and given.isdigit()):
        raise RequestError(400, f"Content-Length={given!r}: the rule is a whole number, >= 0")
    if (length := int(given)) > most:
        raise too_large(length, most)
    try:
        body: bytes = environ["wsgi.input"].read(length)
    except OSError as error:
        raise RequestError(408, f"the body of {length:,} bytes did not come in time") from error
    if len(body) < length:
        raise cut_short(len(body), length)
    if not body:
        raise RequestError(400, f"the body is empty: send {FORMATS}")
    return body


def too_large(length: int, most: int) -> RequestError:
    """Returns the refusal of a body."""
    return RequestError(
        413,
        f"the body has {length:,} bytes: the limit is {most:,}; send a smaller image, or start the "
        "server with a larger --max-mb",
    )


def cut_short(length: int, promised: int) -> RequestError:
    """Returns the refusal of a body that ends early."""
    return RequestError(
        400, f"the body ended after {length:,} of {promised:,} bytes: send Content-Length bytes"
    )


def crops_of(
    content_type: str, body: bytes, crop: Crop, most: int
) -> UInt8[np.ndarray, "n size size 3"]:
    """Returns the crops of the images in a body.

    An encoded image is recognised by its content, whatever its type. Two types are not one image:
    `application/x-raw-rgb`, the pixels of one or several crops, and `multipart/form-data`, the form
    of a browser with one or several files.

    Args:
      content_type: the header.
      body: the body.
      crop: preprocesses an image.
      most: largest number of images.

    Raises:
      RequestError: the body has no image, too many, or one that can't be decoded.

    Examples:
      >>> crops_of(RAW, bytes(2 * 4 * 4 * 3), Crop(4, 4, "bilinear", True), most=8).shape
      (2, 4, 4, 3)
    """
    header = email.message.Message()
    header["Content-Type"] = content_type
    form = header.get_content_type() if content_type else ""
    if form == RAW:
        return _raw(body, crop.size, most)
    if form == FORM:
        files = _files(body, (header.get_boundary() or "").encode())
        if not files:
            raise RequestError(400, f"the form has no file: send {FORMATS} as a file")
        _require_count(len(files), most)
        return np.stack([_decoded(file, "", crop) for file in files])
    return _decoded(body, content_type, crop)[None]


def _raw(body: bytes, size: int, most: int) -> UInt8[np.ndarray, "n size size 3"]:
    """Returns images that are sent as their pixels."""
    image = size * size * 3
    if len(body) % image:
        raise RequestError(
            400,
            f"{len(body):,} bytes of {RAW}: the rule is a multiple of {size} x {size} x 3 = "
            f"{image:,}; send rows of RGB pixels with 8 bits a channel",
        )
    _require_count(len(body) // image, most)
    return np.frombuffer(body, np.uint8).reshape(-1, size, size, 3)


def _require_count(count: int, most: int) -> None:
    if count > most:
        raise RequestError(
            413,
            f"{count:,} images at once: the limit is {most:,}; send fewer, or start the server "
            "with a larger --max-queue",
        )


def _files(body: bytes, boundary: bytes) -> list[bytes]:
    """Returns the files of a form (RFC 7578)."""
    if not boundary:
        raise RequestError(400, f"{FORM} without a boundary: send the image itself as the body")
    files = []
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary)[1:]:
        head, _, content = part.partition(b"\r\n\r\n")
        if b"filename=" in head.lower() and content:
            files.append(content)
    return files


def _decoded(data: bytes, content_type: str, crop: Crop) -> UInt8[np.ndarray, "size size 3"]:
    """Returns the crop of an encoded image."""
    try:
        with _decoding:
            return crop(data)
    except NoImageError as error:
        given = f" of type {content_type}" if content_type else ""
        raise RequestError(
            415,
            f"{len(data):,} bytes{given} are no image: send {FORMATS}, or pixels with the type "
            f"{RAW}",
        ) from error
    except TooManyPixelsError as error:
        raise RequestError(413, f"the image has {error}") from error
    except MemoryError as error:
        raise RequestError(413, "the image takes too much memory: send a smaller one") from error
    except Exception as error:  # Pillow's plugins raise many types
        raise RequestError(400, f"the image is damaged ({error}): send another one") from error
