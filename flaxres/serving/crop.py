"""Decodes images and crops their centre, with only Pillow and NumPy.

The evaluation of the trainer, `flaxres predict` and the server of an export use this one module,
and thus give a network the same pixels.
"""

from __future__ import annotations

import functools
import io
import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:  # the folder of an export does not need it
    from jaxtyping import Integer, UInt8

# A header that promises more is refused before anything is decoded: it may be a decompression bomb.
MAX_PIXELS = 100_000_000

# Formats that Pillow decodes itself. It would hand EPS to Ghostscript, a program of its own.
FORMATS = {
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI"),
    *("TGA", "TIFF", "WEBP"),
}
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# Resized images of a larger aspect ratio are computed only within the crop: a PNG of 1 x 65,500
# pixels and a few hundred bytes would otherwise take 12 GB.
LONGEST_RATIO = 8


class UnreadableError(ValueError):
    """An image that can't be decoded; the message is the reason."""


class NoImageError(UnreadableError):
    """A file that is no image by its content."""


class TooManyPixelsError(UnreadableError):
    """An image that is larger than `MAX_PIXELS`."""


def centre_crop(
    image: bytes | Image.Image,
    size: int,
    resize: int,
    interpolation: str,
    exif: bool = False,
    squash: bool = False,
) -> UInt8[np.ndarray, "size size 3"]:
    """Resizes the short side of an image and takes the central square, exactly as torchvision.

    Args:
      image: an encoded image, or a PIL image.
      size: height and width of the square in pixels.
      resize: short side of the image before the crop.
      interpolation: Pillow's filter, `bilinear` or `bicubic`.
      exif: turn a photograph upright by its EXIF orientation first.
      squash: resize both sides to `resize`, whatever their ratio.

    Returns:
      The crop; pixels outside the image are 0.

    Raises:
      UnreadableError: the image can't be decoded.

    Examples:
      >>> import io
      >>> buffer = io.BytesIO()
      >>> Image.new("RGB", (400, 300), (10, 20, 30)).save(buffer, "PNG")
      >>> crop = centre_crop(buffer.getvalue(), 224, 256, "bilinear")
      >>> crop.shape, crop[0, 0].tolist()
      ((224, 224, 3), [10, 20, 30])
    """
    opened = image if isinstance(image, Image.Image) else open_image(image)
    rgb = to_rgb(opened, exif)
    width, height = rgb.size
    if squash:
        rgb = rgb.resize((resize, resize), FILTERS[interpolation])
    elif min(width, height) != resize:
        if width <= height:
            target = (resize, int(resize * height / width))
        else:
            target = (int(resize * width / height), resize)
        if max(target) > LONGEST_RATIO * resize:
            return _resized_within_crop(rgb, target, size, interpolation)
        rgb = rgb.resize(target, FILTERS[interpolation])
    left, top = round((rgb.width - size) / 2.0), round((rgb.height - size) / 2.0)
    return np.asarray(rgb.crop((left, top, left + size, top + size)))


def open_image(data: bytes) -> Image.Image:
    """Reads the header of an image.

    Args:
      data: an encoded image.

    Returns:
      The image, not decoded yet.

    Raises:
      UnreadableError: `data` is not an image.
    """
    if not data:
        raise UnreadableError("the file is empty")
    try:
        return Image.open(io.BytesIO(data), formats=formats())
    except UnidentifiedImageError as error:
        raise NoImageError("this is no JPEG or PNG image") from error
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError(
            f"more than {MAX_PIXELS:,} pixels, which is the limit: make the image smaller"
        ) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise UnreadableError(str(error)) from error


@functools.cache
def formats() -> tuple[str, ...]:
    """Returns the formats that this build of Pillow decodes."""
    Image.init()
    return tuple(sorted(FORMATS & Image.OPEN.keys()))


def to_rgb(image: Image.Image, exif: bool = False) -> Image.Image:
    """Decodes an image as RGB with 8 bits a channel.

    Args:
      image: an opened image.
      exif: turn it upright by its EXIF orientation.

    Raises:
      UnreadableError: the image has too many pixels, floating-point pixels, or is cut short or
        damaged.
    """
    if image.mode == "F":  # whose range no file format states
        raise UnreadableError("floating-point pixels: store the image with 8 or 16 bits a channel")
    if not image.width * image.height:
        raise UnreadableError(f"{image.width} x {image.height} pixels: there is nothing to see")
    if image.width * image.height > MAX_PIXELS:
        raise TooManyPixelsError(
            f"{image.width} x {image.height} pixels: the limit is {MAX_PIXELS:,} in all; make the "
            "image smaller"
        )
    try:
        image = ImageOps.exif_transpose(image) if exif else image
        if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip and not scale
            return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise UnreadableError(str(error)) from error


def _eight_bits(grey: Integer[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Scales grey levels of 16 bits to 8, rounded, in blocks of rows to save memory."""
    result = np.empty(grey.shape, np.uint8)
    rows = max((1 << 20) // grey.shape[1], 1)
    for top in range(0, len(grey), rows):
        block = grey[top : top + rows].clip(0, 65535).astype(np.int32)
        result[top : top + rows] = (2 * block + 257) // 514
    return result


def _resized_within_crop(
    image: Image.Image, target: tuple[int, int], size: int, interpolation: str
) -> UInt8[np.ndarray, "size size 3"]:
    """Returns the central crop of an image resized to `target`, without the rest of it.

    Pillow's filters reach over the border of a box, so the pixels are those of the whole resized
    image, to within the rounding of their positions. Between its two passes Pillow rounds to 8
    bits; the order of the passes is that of Pillow 13 for the whole image.
    """
    starts = [round((side - size) / 2.0) for side in target]
    lows = [max(start, 0) for start in starts]
    counts = [
        min(start + size, side) - low for start, side, low in zip(starts, target, lows, strict=True)
    ]
    edges, box = [], []  # whole pixels within reach of a filter, and the part of them to resize
    for low, count, old, new in zip(lows, counts, image.size, target, strict=True):
        scale = old / new
        reach = math.ceil(2 * max(scale, 1.0)) + 2  # bicubic filters reach two pixels
        first = max(math.floor(low * scale) - reach, 0)
        last = min(math.ceil((low + count) * scale) + reach, old)
        edges.append((first, last))
        box.append((low * scale - first, min((low + count) * scale, old) - first))
    (x0, x1), (y0, y1) = edges
    (left, right), (top, bottom) = box
    part, method = image.crop((x0, y0, x1, y1)), FILTERS[interpolation]
    across, down = (new / old for new, old in zip(target, image.size, strict=True))
    if down < across < 1:
        part = part.resize((part.width, counts[1]), method, (0, top, part.width, bottom))
        part = part.resize((counts[0], counts[1]), method, (left, 0, right, counts[1]))
    else:
        part = part.resize((counts[0], part.height), method, (left, 0, right, part.height))
        part = part.resize((counts[0], counts[1]), method, (0, top, counts[0], bottom))
    x, y = (start - low for start, low in zip(starts, lows, strict=True))
    return np.asarray(part.crop((x, y, x + size, y + size)))
