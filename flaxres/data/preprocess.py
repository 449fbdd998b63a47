"""The preprocessing that belongs to pretrained weights."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from flaxres.data.augment import IMAGENET_MEAN, IMAGENET_STD
from flaxres.data.choices import Interpolation
from flaxres.errors import InputError
from flaxres.serving.crop import UnreadableError, centre_crop

Bytes = bytes | bytearray | memoryview
ImageLike = str | os.PathLike[str] | Bytes | Image.Image | np.ndarray
"""A path, an encoded image, a PIL image, or an array of uint8, (h, w), (h, w, 1) or (h, w, 3)."""


def several(images: Any) -> Any:
    """Returns images in a list, if they are a single one.

    Examples:
      >>> several("cat.jpg"), several(["cat.jpg", "dog.jpg"])
      (['cat.jpg'], ['cat.jpg', 'dog.jpg'])
    """
    if isinstance(images, np.ndarray):
        return images if images.ndim > 3 else [images]
    single = isinstance(images, str | os.PathLike | Bytes | Image.Image) or hasattr(images, "read")
    return [images] if single else images


def _opened(image: Any, name: str) -> bytes | Image.Image:
    """Returns an encoded image or a PIL image.

    Raises:
      InputError: the file can't be read, or this is no image.
    """
    if isinstance(image, bytes | Image.Image):
        return image
    if isinstance(image, str | os.PathLike):
        try:
            return pathlib.Path(image).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a null byte in the path
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{name} can't be read ({reason}): give a JPEG or PNG file") from error
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if isinstance(image, np.ndarray):
        grey = image.ndim == 3 and image.shape[2] == 1
        pixels = image[..., 0] if grey else image
        if image.dtype == np.uint8 and (pixels.ndim == 2 or pixels.shape[2:] == (3,)):
            return Image.fromarray(pixels)
        raise InputError(
            f"the image is an array of {image.dtype} and shape {image.shape}: the rule is uint8, "
            "(h, w), (h, w, 1) or (h, w, 3)"
        )
    if hasattr(image, "read"):
        return bytes(image.read())
    raise InputError(
        f"an image is of type {type(image).__name__}: give a path, an encoded image, an open file, "
        "a PIL image, or an array of uint8"
    )


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
          images: an image or several: paths, encoded images, open files, PIL images, or arrays of
            uint8 with the channels last.

        Returns:
          The batch that the network takes, empty without images.

        Raises:
          InputError: an image can't be read; the message names it.
        """
        # Image by image, since float64 takes eight times the memory of pixels.
        inputs = [self.normalised(self.crop(image)) for image in several(images)]
        return np.stack(inputs) if inputs else np.zeros((0, self.size, self.size, 3), np.float32)

    def crop(self, image: ImageLike) -> UInt8[np.ndarray, "size size 3"]:
        """Returns the crop of an image before normalisation.

        Raises:
          InputError: the image can't be read; the message names it.
        """
        name = (
            f"image {os.fspath(image)!r}" if isinstance(image, str | os.PathLike) else "the image"
        )
        opened = _opened(image, name)
        try:
            return centre_crop(
                opened, self.size, self.resize, self.interpolation, self.exif, self.squash
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
