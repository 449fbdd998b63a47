"""The preprocessing that belongs to pretrained weights."""

import dataclasses
import pathlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from flaxres.data.augment import IMAGENET_MEAN, IMAGENET_STD
from flaxres.data.choices import Interpolation
from flaxres.errors import InputError
from flaxres.serving.crop import UnreadableError, centre_crop

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
      squash: resize both sides to `resize` pixels, whatever their ratio; timm's `crop_mode`.

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
    squash: bool = False

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
        return np.stack([self.normalised(self.crop(image)) for image in several])

    def crop(self, image: ImageLike) -> UInt8[np.ndarray, "size size 3"]:
        """Returns the crop of an image before normalisation.

        Raises:
          InputError: the image can't be read; the message names it.
        """
        name = "the image"
        if isinstance(image, str | pathlib.Path):
            name = f"image {str(image)!r}"
            try:
                image = pathlib.Path(image).read_bytes()
            except OSError as error:
                raise InputError(
                    f"{name} can't be read ({error.strerror}): give a JPEG or PNG file"
                ) from error
        try:
            return centre_crop(
                image, self.size, self.resize, self.interpolation, self.exif, self.squash
            )
        except UnreadableError as error:
            raise InputError(f"{name}: {error}; give a JPEG or PNG file") from error

    def normalised(
        self, crop: UInt8[np.ndarray, "size size 3"]
    ) -> Float32[np.ndarray, "size size 3"]:
        """Returns a crop as the network takes it: `(crop / 255 - mean) / std`."""
        scaled: np.ndarray = (crop / 255 - np.asarray(self.mean)) / np.asarray(self.std)
        return scaled.astype(np.float32)

    def for_photographs(self) -> "Preprocess":
        """Returns this preprocessing with `exif=True`.

        People give photographs as their viewers show them. `flaxres predict` and the server of an
        export therefore turn them upright, whatever the network was evaluated with.
        """
        return dataclasses.replace(self, exif=True)
