"""The host half of the input: bytes -> uint8 crops. Randomness comes in as numbers, never from here."""

import contextlib
import dataclasses
import io
import math
import threading
from typing import Protocol

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from flaxres.data.choices import CropInterpolation, Interpolation
from flaxres.data.order import uniforms
from flaxres.errors import InputError

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# A header that promises more than this is refused before anything is decoded (a decompression bomb).
MAX_PIXELS = 100_000_000
TRIES = 10
MCU_ROWS = 16
SOF_BASELINE, SOF_EXTENDED, SOS, DRI = 0xC0, 0xC1, 0xDA, 0xDD  # markers of a JPEG
SCRATCH_LIMIT = 16 << 20
per_thread = threading.local()


class UnreadableError(InputError):
    """An image that can't be decoded, with the reason."""


def open_image(data: bytes) -> Image.Image:
    """The image in `data`, header only; raises UnreadableError for what is no image or too large."""
    if not data:
        raise UnreadableError("the file is empty")
    try:
        image = Image.open(io.BytesIO(data))
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        ValueError,
        SyntaxError,
    ) as error:
        raise UnreadableError(
            "this is no JPEG or PNG image"
            if isinstance(error, UnidentifiedImageError)
            else str(error)
        ) from error
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableError(
            f"{image.width} x {image.height} pixels: the limit is {MAX_PIXELS:,} in all; make the image smaller"
        )
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` decoded in full, as RGB of 8 bits; raises UnreadableError for one that is cut short."""
    try:
        if image.mode.startswith(
            "I"
        ):  # 16 bits of gray, which Pillow would clip instead of scaling
            return Image.fromarray(
                (np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8)
            ).convert("RGB")
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


class Transform(Protocol):
    """From the bytes of an image to a picture for the network, by numbers that belong to its position; picklable, for worker processes."""

    @property
    def size(self) -> int: ...

    def numbers(self, positions: np.ndarray) -> np.ndarray:
        """(N,) positions -> (N, ...) random numbers, one row a picture."""
        ...

    def __call__(self, data: bytes, numbers: np.ndarray) -> np.ndarray:
        """(size, size, 3) uint8; raises UnreadableError."""
        ...


@dataclasses.dataclass(frozen=True)
class CentreCrop:
    """The evaluation's transform, see `centre_crop`; without randomness."""

    size: int
    resize: int
    interpolation: Interpolation = "bilinear"

    def numbers(self, positions: np.ndarray) -> np.ndarray:
        return np.zeros((len(positions), 0))

    def __call__(self, data: bytes, numbers: np.ndarray) -> np.ndarray:
        return centre_crop(data, self.size, self.resize, self.interpolation)


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """The training's transform, see `random_resized_crop`."""

    size: int
    seed: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: CropInterpolation = "fast"

    def numbers(self, positions: np.ndarray) -> np.ndarray:
        return uniforms(self.seed, positions, (TRIES, 4))

    def __call__(self, data: bytes, numbers: np.ndarray) -> np.ndarray:
        return random_resized_crop(
            data, self.size, numbers, self.scale, self.ratio, self.interpolation
        )


def centre_crop(data: bytes, size: int, resize: int, interpolation: Interpolation) -> np.ndarray:
    """The evaluation picture: short side resized to `resize`, then the middle `size` x `size`; exactly Pillow's and torchvision's.

    Returns (size, size, 3) uint8. Raises UnreadableError.
    """
    image = to_rgb(open_image(data))
    width, height = image.size
    short = min(width, height)
    if short != resize:
        target = (
            (resize, int(resize * height / width))
            if width <= height
            else (int(resize * width / height), resize)
        )
        image = image.resize(target, FILTERS[interpolation])
    left, top = round((image.width - size) / 2.0), round((image.height - size) / 2.0)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def crop_box(
    height: int,
    width: int,
    numbers: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Random resized crop (Szegedy et al. 2015, section 6; torchvision's rule): (top, left, height, width) in pixels.

    `numbers`: (TRIES, 4) numbers in [0, 1) for area, aspect ratio, top and left of each try. When none fits: the largest central crop whose
    aspect ratio is within `ratio`.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area, aspect, top, left in numbers:
        target = height * width * (scale[0] + (scale[1] - scale[0]) * area)
        proportion = math.exp(low + (high - low) * aspect)
        w, h = round(math.sqrt(target * proportion)), round(math.sqrt(target / proportion))
        if 0 < w <= width and 0 < h <= height:
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    proportion = min(max(width / height, ratio[0]), ratio[1])
    w, h = (
        (width, round(width / proportion))
        if width / height < ratio[0]
        else (round(height * proportion), height)
    )
    w, h = min(w, width), min(h, height)
    return (height - h) // 2, (width - w) // 2, h, w


def random_resized_crop(
    data: bytes,
    size: int,
    numbers: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    interpolation: CropInterpolation,
) -> np.ndarray:
    """The training picture: a random part of the image, resized with antialiasing to (size, size, 3) uint8. Raises UnreadableError.

    `numbers`: (TRIES, 4) in [0, 1), see `crop_box`. "fast" is bilinear with antialiasing by OpenCV, four times as fast as Pillow's and on average
    within a grey level of it. Of a JPEG nothing below the crop is decoded, and all of it at 1/2, 1/4 or 1/8 where the crop is still `size` or more.
    """
    if data[:2] == b"\xff\xd8":
        with contextlib.suppress(
            ValueError
        ):  # what simplejpeg refuses, CMYK among it, Pillow may still read
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if height * width <= MAX_PIXELS and colours not in ("CMYK", "YCCK"):
                box = crop_box(height, width, numbers, scale, ratio)
                picture, shrunk = decode_above(data, height, width, box, size)
                return resize(picture, box, shrunk, size, interpolation)
    picture = np.asarray(to_rgb(open_image(data)))
    return resize(
        picture,
        crop_box(picture.shape[0], picture.shape[1], numbers, scale, ratio),
        1,
        size,
        interpolation,
    )


def decode_above(
    data: bytes, height: int, width: int, box: tuple[int, int, int, int], size: int
) -> tuple[np.ndarray, int]:
    """A JPEG as RGB, without what lies below the box, and by how much it is shrunk; raises ValueError where it is damaged.

    The rows below are left out by lowering the height in the header, which in a JPEG of one scan changes no pixel above.
    """
    top, _, h, w = box
    factor = next(f for f in (8, 4, 2, 1) if f == 1 or min(h, w) >= f * size)
    # One more row of blocks than the crop needs, since chroma is smoothed across their borders.
    rows = (top + h) // MCU_ROWS * MCU_ROWS + 2 * MCU_ROWS
    at = height_offset(data) if rows < height else None
    if at is not None:
        data, height = data[:at] + rows.to_bytes(2, "big") + data[at + 2 :], rows
    picture = scratch(-(-height // factor), -(-width // factor))
    try:
        simplejpeg.decode_jpeg(
            data,
            "RGB",
            min_factor=factor,
            min_height=picture.shape[0],
            min_width=picture.shape[1],
            buffer=picture,
        )
    except ValueError as error:
        # libjpeg tells of its first warning only: it is this one where all that was asked for was in order.
        if at is None or "extraneous bytes before marker 0xd9" not in str(error):
            raise
    return picture, factor


def scratch(height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8 in memory of this thread's that the next call takes again: new memory for each picture costs time."""
    need = height * width * 3
    if need > SCRATCH_LIMIT:
        return np.empty((height, width, 3), np.uint8)
    if getattr(per_thread, "memory", np.empty(0)).size < need:
        per_thread.memory = np.empty(need, np.uint8)
    memory: np.ndarray = per_thread.memory
    return memory[:need].reshape(height, width, 3)


def height_offset(data: bytes) -> int | None:
    """Where a JPEG's header says its height.

    None where lowering it could lose more than the rows below: with several scans the later ones, with restart markers the sense of a warning.
    """
    at, components, found = 2, 0, None
    while at + 9 < len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == SOS:
            return found if data[at + 4] == components else None
        if marker in (SOF_BASELINE, SOF_EXTENDED):
            found, components = at + 5, data[at + 9]
        elif marker == DRI:
            return None
        at += 2 + length
    return None


def resize(
    picture: np.ndarray,
    box: tuple[int, int, int, int],
    shrunk: int,
    size: int,
    interpolation: CropInterpolation,
) -> np.ndarray:
    """The box, in pixels of the picture before it was shrunk, as (size, size, 3)."""
    top, left, h, w = (value / shrunk for value in box)
    if interpolation != "fast":
        image = Image.fromarray(picture)
        return np.asarray(
            image.resize(
                (size, size),
                FILTERS[interpolation],
                box=(left, top, min(left + w, image.width), min(top + h, image.height)),
            )
        )
    y, x = round(top), round(left)
    crop = picture[y : max(round(top + h), y + 1), x : max(round(left + w), x + 1)]
    down, across = crop.shape[0] / size, crop.shape[1] / size
    if max(down, across) > 2:
        # OpenCV averages areas only where both sides shrink: the side that doesn't comes after.
        crop = cv2.resize(
            crop, (min(crop.shape[1], size), min(crop.shape[0], size)), interpolation=cv2.INTER_AREA
        )
    elif max(down, across) > 1:
        crop = cv2.sepFilter2D(
            crop, -1, smoothing(across), smoothing(down), borderType=cv2.BORDER_REPLICATE
        )
    return (
        cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR)
        if crop.shape[:2] != (size, size)
        else crop.copy()
    )


def smoothing(scale: float) -> np.ndarray:
    """What to smooth with before a side is made `scale` times smaller, up to 2, by linear interpolation, so that nothing aliases.

    Pillow's antialiasing weighs pixels by a triangle of half width `scale`, whose variance is scale**2 / 6; interpolation itself has 1/6 of that, and
    the kernel (v / 2, 1 - v, v / 2) has the rest, v.
    """
    variance = max(scale * scale - 1, 0) / 6
    return np.asarray([variance / 2, 1 - variance, variance / 2], np.float32)


def shrink_image(data: bytes, short_side: int, quality: int) -> tuple[str, bytes]:
    """What was done, and an image whose short side is at most `short_side` pixels, as JPEG where it had to change; raises UnreadableError."""
    kind, data = repair(data)
    image = open_image(data)
    if min(image.size) <= short_side:
        return f"{kind} kept", data
    width, height = (
        max(round(side * short_side / min(image.size)), short_side) for side in image.size
    )
    small = cv2.resize(np.asarray(to_rgb(image)), (width, height), interpolation=cv2.INTER_AREA)
    return "shrunk", simplejpeg.encode_jpeg(small, quality, "RGB", "420", fastdct=False)
