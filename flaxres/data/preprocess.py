"""The preprocessing that belongs to a weight: from a file or a picture to what the network was trained to see."""

import dataclasses
import io
import pathlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

from flaxres.data.augment import IMAGENET_MEAN, IMAGENET_STD
from flaxres.data.choices import Interpolation
from flaxres.data.decode import UnreadableError, centre_crop
from flaxres.errors import InputError


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Short side resized to `resize`, the middle `size` x `size`, then `(image / 255 - mean) / std`; resized by Pillow, as torchvision and timm do.

    Call: one picture or several (paths, encoded bytes, or PIL images) -> (N, size, size, 3) float32. Raises InputError that names what can't be read.
    """

    size: int = 224
    resize: int = 256
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __call__(self, pictures: "Picture | Iterable[Picture]") -> np.ndarray:
        several = (
            [pictures]
            if isinstance(pictures, str | bytes | pathlib.Path | Image.Image)
            else pictures
        )
        crops = np.stack([self.crop(picture) for picture in several])
        return ((crops / 255 - np.asarray(self.mean)) / np.asarray(self.std)).astype(np.float32)

    def crop(self, picture: "Picture") -> np.ndarray:
        """What the network sees of a picture, before normalisation: (size, size, 3) uint8."""
        name = "the picture"
        if isinstance(picture, str | pathlib.Path):
            name = f"image {str(picture)!r}"
            try:
                picture = pathlib.Path(picture).read_bytes()
            except OSError as error:
                raise InputError(
                    f"{name} can't be read ({error.strerror}): give a JPEG or PNG file"
                ) from error
        if isinstance(picture, Image.Image):
            buffer = io.BytesIO()
            picture.convert("RGB").save(buffer, "PNG")
            picture = buffer.getvalue()
        try:
            return centre_crop(picture, self.size, self.resize, self.interpolation)
        except UnreadableError as error:
            raise InputError(f"{name}: {error}; give a JPEG or PNG file") from error


Picture = str | pathlib.Path | bytes | Image.Image
