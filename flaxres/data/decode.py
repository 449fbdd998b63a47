"""The host half of the input: bytes -> uint8 crops. Randomness comes in as numbers, never from here."""

import contextlib
import io
import math
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from flaxres.errors import InputError

Interpolation = Literal["bilinear", "bicubic"]
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# A header that promises more than this is refused before anything is decoded (a decompression bomb).
MAX_PIXELS = 100_000_000
TRIES = 10


class UnreadableError(InputError):
    """An image that can't be decoded, with the reason."""


def open_image(data: bytes) -> Image.Image:
    """The image in `data`, header only; raises UnreadableError for what is no image or too large."""
    if not data:
        raise UnreadableError("the file is empty")
    try:
        image = Image.open(io.BytesIO(data))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise UnreadableError("this is no JPEG or PNG image" if isinstance(error, UnidentifiedImageError) else str(error)) from error
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableError(f"{image.width} x {image.height} pixels: the limit is {MAX_PIXELS:,} in all; make the image smaller")
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` decoded in full, as RGB of 8 bits; raises UnreadableError for one that is cut short."""
    try:
        if image.mode.startswith("I"):  # 16 bits of gray, which Pillow would clip instead of scaling
            return Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8)).convert("RGB")
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise UnreadableError(str(error)) from error


def repair(data: bytes) -> tuple[str, bytes]:
    """What kind of file `data` is, and bytes that every decoder reads as RGB; raises UnreadableError.

    JPEG (gray or colour) and 8-bit PNG are kept to the byte. Everything else that Pillow opens is written anew: CMYK as JPEG, the rest as PNG.
    """
    image = open_image(data)
    rgb, kind = to_rgb(image), f"{image.format} {image.mode}"
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        try:
            simplejpeg.decode_jpeg(data, "RGB")
            return "JPEG", data
        except ValueError:  # Pillow lets damage pass; libjpeg's strict reading doesn't
            kind = "JPEG with damaged parts"
    if image.format == "PNG" and image.mode in ("RGB", "L"):
        return "PNG", data
    buffer = io.BytesIO()
    if image.format == "JPEG":
        rgb.save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        rgb.save(buffer, "PNG")
    return f"{kind} repaired", buffer.getvalue()


def centre_crop(data: bytes, size: int, resize: int, interpolation: Interpolation) -> np.ndarray:
    """The evaluation picture: short side resized to `resize`, then the middle `size` x `size`; exactly Pillow's and torchvision's.

    Returns (size, size, 3) uint8. Raises UnreadableError.
    """
    image = to_rgb(open_image(data))
    width, height = image.size
    short = min(width, height)
    if short != resize:
        target = (resize, int(resize * height / width)) if width <= height else (int(resize * width / height), resize)
        image = image.resize(target, FILTERS[interpolation])
    left, top = round((image.width - size) / 2.0), round((image.height - size) / 2.0)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def crop_box(height: int, width: int, uniforms: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """Random resized crop (Szegedy et al. 2015, section 6; torchvision's rule): (top, left, height, width) in pixels.

    `uniforms`: (TRIES, 4) numbers in [0, 1) for area, aspect ratio, top and left of each try. When none fits: the largest central crop whose
    aspect ratio is within `ratio`.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area, aspect, top, left in uniforms:
        target = height * width * (scale[0] + (scale[1] - scale[0]) * area)
        proportion = math.exp(low + (high - low) * aspect)
        w, h = round(math.sqrt(target * proportion)), round(math.sqrt(target / proportion))
        if 0 < w <= width and 0 < h <= height:
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    proportion = min(max(width / height, ratio[0]), ratio[1])
    w, h = (width, round(width / proportion)) if width / height < ratio[0] else (round(height * proportion), height)
    w, h = min(w, width), min(h, height)
    return (height - h) // 2, (width - w) // 2, h, w


def random_resized_crop(
    data: bytes, size: int, uniforms: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float], interpolation: Interpolation
) -> np.ndarray:
    """The training picture: a random part of the image, resized with antialiasing to (size, size, 3) uint8. Raises UnreadableError.

    A JPEG is decoded at the smallest of libjpeg's scales (1/8 to 8/8) that still has the crop at `size` or more.
    """
    picture, (height, width) = None, (0, 0)
    if data[:2] == b"\xff\xd8":
        with contextlib.suppress(ValueError):  # what simplejpeg refuses, CMYK among it, Pillow may still read
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if height * width <= MAX_PIXELS and colours not in ("CMYK", "YCCK"):
                top, left, h, w = crop_box(height, width, uniforms, scale, ratio)
                least = min(height, math.ceil(size * height / h)), min(width, math.ceil(size * width / w))
                picture = Image.fromarray(simplejpeg.decode_jpeg(data, "RGB", min_height=least[0], min_width=least[1], min_factor=1))
    if picture is None:
        picture = to_rgb(open_image(data))
        height, width = picture.height, picture.width
        top, left, h, w = crop_box(height, width, uniforms, scale, ratio)
    y, x = picture.height / height, picture.width / width
    return np.asarray(picture.resize((size, size), FILTERS[interpolation], box=(left * x, top * y, (left + w) * x, (top + h) * y)))
