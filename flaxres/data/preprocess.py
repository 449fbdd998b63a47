"""The preprocessing that belongs to pretrained weights."""

import dataclasses
import io
import pathlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from flaxres.data.augment import IMAGENET_MEAN, IMAGENET_STD
from flaxres.data.choices import Interpolation
from flaxres.data.decode import centre_crop
from flaxres.data.images import UnreadableError
from flaxres.errors import InputError

ImageLike = str | pathlib.Path | bytes | Image.Image
"""A path, an encoded image, or a PIL image."""


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Resizes the short side, crops the central square, and normalises.

    Pillow resizes, as in torchvision and timm. Normalised values are `(image / 255 - mean) / std`.

    Attributes:
      size: height and width of the crop in pixels.
      resize: short side of the image before the crop.
      interpolation: filter of the resizing.
      mean, std: mean and standard deviation of the channels of images in [0, 1].
      exif: turn photographs upright by their EXIF orientation. Published weights were evaluated
        without, and so it is off unless asked for.

    Examples:
      >>> Preprocess(size=32, resize=36)(Image.new("RGB", (64, 48))).shape
      (1, 32, 32, 3)
    """

    size: int = 224
    resize: int = 256
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    exif: bool = False

    def __call__(
        self, images: ImageLike | Iterable[ImageLike]
    ) -> Float32[np.ndarray, "n size size 3"]:
        """Preprocesses images.

        Args:
          images: an image or several: paths, encoded images, or PIL images.

        Returns:
          The batch that the network takes.

        Raises:
          InputError: an image can't be read; the message names it.
        """
        several = [images] if isinstance(images, ImageLike) else images
        # Image by image, since float64 takes eight times the memory of pixels.
        normalised = [
            ((self.crop(image) / 255 - np.asarray(self.mean)) / np.asarray(self.std)).astype(
                np.float32
            )
            for image in several
        ]
        return np.stack(normalised)

    def crop(self, image: ImageLike) -> UInt8[np.ndarray, "size size 3"]:
        """Returns the crop of an image before normalisation.

        Raises:
          InputError: the image can't be read; the message names it.
        """
        name = f"image {str(image)!r}" if isinstance(image, str | pathlib.Path) else "the image"
        try:
            data = _encoded(image)
        except OSError as error:
            raise InputError(
                f"{name} can't be read ({error.strerror}): give a JPEG or PNG file"
            ) from error
        try:
            return centre_crop(data, self.size, self.resize, self.interpolation, self.exif)
        except UnreadableError as error:
            raise InputError(f"{name}: {error}; give a JPEG or PNG file") from error


def _encoded(image: ImageLike) -> bytes:
    """Returns an image as an encoded file."""
    if isinstance(image, str | pathlib.Path):
        return pathlib.Path(image).read_bytes()
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "PNG", exif=image.getexif())
        return buffer.getvalue()
    return image
