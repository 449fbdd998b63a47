"""Images for tests of decoding."""

import io

import numpy as np
from PIL import Image

from flaxres.data.decode import TRIES
from flaxres.data.order import uniforms


def numbers_of(position: int) -> np.ndarray:
    """Returns the random numbers of the crop at a position."""
    return uniforms(0, np.asarray([position]), (TRIES, 4))[0]


def photograph(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Returns a smooth image, so that two resizings can be compared."""
    y, x = np.mgrid[:height, :width]
    channels = np.stack(
        [128 + 100 * np.sin(x / 17), 128 + 100 * np.cos(y / 23), 255 * x / width], -1
    )
    return Image.fromarray(channels.astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    """Returns an image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
