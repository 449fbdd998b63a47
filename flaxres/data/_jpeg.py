"""Decoding of the upper part of a JPEG, at a reduced scale, into memory that is used again."""

import threading

import numpy as np
import simplejpeg
from jaxtyping import UInt8

MCU_ROWS = 16
SOF_BASELINE, SOF_EXTENDED, SOS, DRI = 0xC0, 0xC1, 0xDA, 0xDD  # markers of a JPEG
SCRATCH_LIMIT = 16 << 20
per_thread = threading.local()


def decode_above(
    data: bytes, height: int, width: int, box: tuple[int, int, int, int], size: int
) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
    """Decodes a JPEG as RGB without the rows below a box.

    The rows are left out by lowering the height in the header. In a JPEG of one scan this changes
    no pixel above them.

    Args:
      data: a JPEG.
      height, width: its size in pixels.
      box: top, left, height and width of the part that is needed.
      size: pixels that each side of the box must keep; a larger box is decoded at 1/2, 1/4 or 1/8.

    Returns:
      The image, which the next call in this thread overwrites, and by what factor it is smaller.

    Raises:
      ValueError: the JPEG is damaged.
    """
    top, _, h, w = box
    factor = next(f for f in (8, 4, 2, 1) if f == 1 or min(h, w) >= f * size)
    # One more row of blocks than the crop needs, since chroma is smoothed across their borders.
    rows = (top + h) // MCU_ROWS * MCU_ROWS + 2 * MCU_ROWS
    at = height_offset(data) if rows < height else None
    if at is not None:
        data, height = data[:at] + rows.to_bytes(2, "big") + data[at + 2 :], rows
    image = _scratch(-(-height // factor), -(-width // factor))
    try:
        simplejpeg.decode_jpeg(
            data,
            "RGB",
            min_factor=factor,
            min_height=image.shape[0],
            min_width=image.shape[1],
            buffer=image,
        )
    except ValueError as error:
        # libjpeg reports its first warning only. It is this one if the decoded part is sound.
        if at is None or "extraneous bytes before marker 0xd9" not in str(error):
            raise
    return image, factor


def height_offset(data: bytes) -> int | None:
    """Returns the offset of the height in the header of a JPEG.

    Returns None if a lower height could lose more than the rows below it: in a JPEG of several
    scans the later scans, in one with restart markers the meaning of a warning.

    Args:
      data: a JPEG.
    """
    at, components, offset = 2, 0, None
    while at + 9 < len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == SOS:
            return offset if data[at + 4] == components else None
        if marker in (SOF_BASELINE, SOF_EXTENDED):
            offset, components = at + 5, data[at + 9]
        elif marker == DRI:
            return None
        at += 2 + length
    return None


def _scratch(height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """Returns memory for an image that the next call in this thread returns again.

    New memory for each image costs time.
    """
    need = height * width * 3
    if need > SCRATCH_LIMIT:
        return np.empty((height, width, 3), np.uint8)
    if getattr(per_thread, "memory", np.empty(0)).size < need:
        per_thread.memory = np.empty(need, np.uint8)
    memory: np.ndarray = per_thread.memory
    return memory[:need].reshape(height, width, 3)
