"""Image files: opening, repairing and shrinking them."""

import functools
import io
import pathlib

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Integer, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from flaxres.data.orientation import orientation_alone, with_exif
from flaxres.errors import InputError

# A header that promises more is refused before anything is decoded: it may be a decompression bomb.
MAX_PIXELS = 100_000_000

# Longest side of a JPEG that libjpeg writes.
LONGEST_JPEG = 65_500


# Formats that Pillow decodes itself. It would hand EPS to Ghostscript, a program of its own.
FORMATS = {
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI"),
    *("TGA", "TIFF", "WEBP"),
}


class UnreadableError(InputError):
    """An image that can't be decoded; the message is the reason."""


class NoImageError(UnreadableError):
    """A file that is no image by its content."""


def open_image(data: bytes) -> Image.Image:
    """Reads the header of an image.

    Args:
      data: an encoded image.

    Returns:
      The image, not decoded yet.

    Raises:
      UnreadableError: `data` is not an image or has too many pixels.
    """
    if not data:
        raise UnreadableError("the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except UnidentifiedImageError as error:
        raise NoImageError("this is no JPEG or PNG image") from error
    except (Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise UnreadableError(str(error)) from error
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableError(
            f"{image.width} x {image.height} pixels: the limit is {MAX_PIXELS:,} in all; make the "
            "image smaller"
        )
    return image


def is_image(path: pathlib.Path) -> bool:
    """Returns True if the header of a file is that of an image; reads no more than the header."""
    try:
        Image.open(path, formats=_formats()).close()
    except Exception:  # Pillow's plugins raise many types
        return False
    return True


@functools.cache
def _formats() -> tuple[str, ...]:
    """Returns the formats that this build of Pillow decodes."""
    Image.init()
    return tuple(sorted(FORMATS & Image.OPEN.keys()))


def to_rgb(image: Image.Image, exif: bool = False) -> Image.Image:
    """Decodes an image as RGB with 8 bits a channel.

    Args:
      image: an opened image.
      exif: turn it upright by its EXIF orientation.

    Raises:
      UnreadableError: the image is cut short or damaged.
    """
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


def repair(data: bytes) -> tuple[str, bytes]:
    """Returns the format of an image, and bytes that every decoder reads as RGB.

    JPEG (grey or colour) and 8-bit PNG are kept to the byte. Everything else that Pillow opens is
    encoded again: CMYK as JPEG, the rest as PNG.

    Args:
      data: an encoded image.

    Returns:
      The format, such as `JPEG` or `PNG RGBA repaired`, and the encoded image.

    Raises:
      UnreadableError: the image can't be decoded.

    Examples:
      >>> buffer = io.BytesIO()
      >>> Image.new("RGBA", (4, 3)).save(buffer, "PNG")
      >>> repair(buffer.getvalue())[0]
      'PNG RGBA repaired'
    """
    image = open_image(data)
    rgb, name = to_rgb(image), f"{image.format} {image.mode}"
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        try:
            simplejpeg.decode_jpeg(data, "RGB")
            return "JPEG", data
        except ValueError:  # Pillow ignores some damage, libjpeg's strict mode does not
            name = "JPEG with damaged parts"
    if image.format == "PNG" and image.mode in ("RGB", "L"):
        return "PNG", data
    buffer, exif = io.BytesIO(), orientation_alone(image)
    if image.format == "JPEG":
        rgb.save(buffer, "JPEG", quality=95, subsampling=0, exif=exif)
    else:
        rgb.save(buffer, "PNG", exif=exif)
    return f"{name} repaired", buffer.getvalue()


def shrink_image(data: bytes, short_side: int, quality: int) -> tuple[str, bytes]:
    """Makes the short side of an image at most `short_side` pixels.

    An image that would still be too long for a JPEG is kept.

    Args:
      data: an encoded image.
      short_side: largest short side in pixels.
      quality: quality of the JPEG if the image has to change.

    Returns:
      What was done, `shrunk` or the format and `kept`, and the encoded image.

    Raises:
      UnreadableError: the image can't be decoded.
    """
    name, data = repair(data)
    image = open_image(data)
    short = min(image.size)
    if short <= short_side:
        return f"{name} kept", data
    if short_side * max(image.size) > LONGEST_JPEG * short:
        return f"{name} kept", data
    width, height = (max(round(side * short_side / short), short_side) for side in image.size)
    small = cv2.resize(np.asarray(to_rgb(image)), (width, height), interpolation=cv2.INTER_AREA)
    encoded = simplejpeg.encode_jpeg(small, quality, "RGB", "420", fastdct=False)
    return "shrunk", with_exif(encoded, orientation_alone(image))
