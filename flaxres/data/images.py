"""Image files: opening, repairing and shrinking them."""

import io
import pathlib

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from flaxres.data.orientation import orientation_alone, with_exif
from flaxres.serving.crop import formats, open_image, to_rgb

# Longest side of a JPEG that libjpeg writes.
LONGEST_JPEG = 65_500


def is_image(path: pathlib.Path) -> bool:
    """Returns True if the header of a file is that of an image; reads no more than the header."""
    try:
        Image.open(path, formats=formats()).close()
    except Exception:  # Pillow's plugins raise many types
        return False
    return True


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
