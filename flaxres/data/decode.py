"""The part of the input that runs on the host: encoded images -> uint8 crops.

Random numbers are arguments; nothing here draws any.
"""

import contextlib
import dataclasses
import math
from typing import Protocol

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Float, Integer, UInt8
from PIL import Image

from flaxres.data._jpeg import decode_above
from flaxres.data.choices import CropInterpolation, Interpolation
from flaxres.data.order import uniforms
from flaxres.data.orientation import UPRIGHT, Box, orientation, stored_box, upright
from flaxres.serving.crop import FILTERS, MAX_PIXELS, centre_crop, open_image, to_rgb

# Attempts to draw a crop that lies inside the image.
TRIES = 10


class Transform(Protocol):
    """A function from an encoded image to the crop that the network gets.

    Random numbers belong to the position of the sample. Transforms can be pickled for worker
    processes.
    """

    @property
    def size(self) -> int:
        """Height and width of the crops."""
        ...

    def numbers(self, positions: Integer[np.ndarray, " n"]) -> Float[np.ndarray, "n ..."]:
        """Returns the random numbers of samples, one row for each position."""
        ...

    def __call__(
        self, data: bytes, numbers: Float[np.ndarray, "..."]
    ) -> UInt8[np.ndarray, "size size 3"]:
        """Returns the crop of an encoded image; raises UnreadableError if it can't be decoded."""
        ...


@dataclasses.dataclass(frozen=True)
class CentreCrop:
    """The transform of evaluation, without randomness; see `flaxres.serving.crop.centre_crop`.

    Attributes:
      size: height and width of the crops in pixels.
      resize: short side of the image before the crop.
      interpolation: filter of the resizing.
      exif: turn photographs upright by their EXIF orientation.
    """

    size: int
    resize: int
    interpolation: Interpolation = "bilinear"
    exif: bool = False

    def numbers(self, positions: Integer[np.ndarray, " n"]) -> Float[np.ndarray, "n 0"]:
        return np.zeros((len(positions), 0))

    def __call__(
        self, data: bytes, numbers: Float[np.ndarray, " 0"]
    ) -> UInt8[np.ndarray, "size size 3"]:
        return centre_crop(data, self.size, self.resize, self.interpolation, self.exif)


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """The transform of training; see `random_resized_crop`.

    Attributes:
      size: height and width of the crops in pixels.
      seed: seed of the random numbers.
      scale: smallest and largest share of the image's area.
      ratio: smallest and largest ratio of width to height.
      interpolation: filter of the resizing.
      exif: turn photographs upright by their EXIF orientation.
    """

    size: int
    seed: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: CropInterpolation = "fast"
    exif: bool = False

    def numbers(self, positions: Integer[np.ndarray, " n"]) -> Float[np.ndarray, "n tries 4"]:
        return uniforms(self.seed, positions, (TRIES, 4))

    def __call__(
        self, data: bytes, numbers: Float[np.ndarray, "tries 4"]
    ) -> UInt8[np.ndarray, "size size 3"]:
        return random_resized_crop(
            data, self.size, numbers, self.scale, self.ratio, self.interpolation, self.exif
        )


def crop_box(
    height: int,
    width: int,
    numbers: Float[np.ndarray, "tries 4"],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """Returns the box of a random resized crop (Szegedy et al. 2015, section 6).

    The rule is torchvision's. If no attempt fits into the image, the box is the largest central
    one with an aspect ratio within `ratio`.

    Args:
      height, width: size of the image in pixels.
      numbers: uniform numbers in [0, 1) for the area, aspect ratio, top and left of each attempt.
      scale: smallest and largest share of the image's area.
      ratio: smallest and largest ratio of width to height.

    Returns:
      Top, left, height and width in pixels.

    Examples:
      >>> crop_box(300, 400, np.full((1, 4), 0.5), (0.08, 1.0), (3 / 4, 4 / 3))
      (23, 73, 255, 255)
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area, aspect, top, left in numbers:
        target = height * width * (scale[0] + (scale[1] - scale[0]) * area)
        proportion = math.exp(low + (high - low) * aspect)
        w, h = round(math.sqrt(target * proportion)), round(math.sqrt(target / proportion))
        if 0 < w <= width and 0 < h <= height:
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    proportion = min(max(width / height, ratio[0]), ratio[1])
    if width / height < ratio[0]:
        w, h = width, round(width / proportion)
    else:
        w, h = round(height * proportion), height
    w, h = min(w, width), min(h, height)
    return (height - h) // 2, (width - w) // 2, h, w


def random_resized_crop(
    data: bytes,
    size: int,
    numbers: Float[np.ndarray, "tries 4"],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    interpolation: CropInterpolation,
    exif: bool = False,
) -> UInt8[np.ndarray, "size size 3"]:
    """Crops a random part of an image and resizes it with antialiasing.

    Nothing below the crop of a JPEG is decoded. The rest is decoded at 1/2, 1/4 or 1/8 if the crop
    still has `size` pixels or more.

    Args:
      data: an encoded image.
      size: height and width of the result in pixels.
      numbers: uniform numbers in [0, 1); see `crop_box`.
      scale, ratio: see `crop_box`.
      interpolation: `bilinear` and `bicubic` are Pillow's. `fast` is bilinear with antialiasing by
        OpenCV, four times as fast as Pillow's and on average within a grey level of it.
      exif: crop the upright photograph, by its EXIF orientation.

    Returns:
      The crop.

    Raises:
      UnreadableError: the image can't be decoded.
    """
    if data[:2] == b"\xff\xd8":
        # Pillow may still read what simplejpeg refuses, such as CMYK.
        with contextlib.suppress(ValueError):
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if height * width <= MAX_PIXELS and colours not in ("CMYK", "YCCK"):
                turned = orientation(data) if exif else UPRIGHT
                sides = (width, height) if turned >= 5 else (height, width)
                box = stored_box(crop_box(*sides, numbers, scale, ratio), height, width, turned)
                part, factor = decode_above(data, height, width, box, size)
                # The crop is square, so the turn may come last.
                return upright(resize(part, box, factor, size, interpolation), turned)
    image = np.asarray(to_rgb(open_image(data), exif))
    box = crop_box(image.shape[0], image.shape[1], numbers, scale, ratio)
    return resize(image, box, 1, size, interpolation)


def resize(
    image: UInt8[np.ndarray, "h w 3"],
    box: Box,
    factor: int,
    size: int,
    interpolation: CropInterpolation,
) -> UInt8[np.ndarray, "size size 3"]:
    """Resizes a box of an image with antialiasing.

    Args:
      image: an image that was made smaller by `factor`.
      box: the part to resize, in pixels before the image was made smaller.
      factor: 1, 2, 4 or 8.
      size: height and width of the result in pixels.
      interpolation: see `random_resized_crop`.

    Returns:
      The resized part, in memory of its own.
    """
    top, left, h, w = (value / factor for value in box)
    if interpolation != "fast":
        whole = Image.fromarray(image)
        part = (left, top, min(left + w, whole.width), min(top + h, whole.height))
        return np.asarray(whole.resize((size, size), FILTERS[interpolation], box=part))
    y, x = round(top), round(left)
    crop = image[y : max(round(top + h), y + 1), x : max(round(left + w), x + 1)]
    down, across = crop.shape[0] / size, crop.shape[1] / size
    if max(down, across) > 2:
        # OpenCV averages areas only if both sides shrink: a side that grows is resized below.
        smaller = (min(crop.shape[1], size), min(crop.shape[0], size))
        crop = cv2.resize(crop, smaller, interpolation=cv2.INTER_AREA)
    elif max(down, across) > 1:
        kernels = _smoothing(across), _smoothing(down)
        crop = cv2.sepFilter2D(crop, -1, *kernels, borderType=cv2.BORDER_REPLICATE)
    if crop.shape[:2] == (size, size):
        return crop.copy()
    return cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR)


def _smoothing(scale: float) -> Float[np.ndarray, " 3"]:
    """Returns the filter to apply before a side is made `scale` times smaller, up to 2.

    The side is then resized by linear interpolation, and nothing aliases. Pillow's antialiasing
    weighs pixels by a triangle of half width `scale`, with variance scale**2 / 6. Interpolation
    itself has 1/6 of that, and the kernel (v / 2, 1 - v, v / 2) has the rest, v.
    """
    variance = max(scale * scale - 1, 0) / 6
    return np.asarray([variance / 2, 1 - variance, variance / 2], np.float32)
