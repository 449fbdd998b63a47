"""Partial decoding of JPEGs: it changes no pixel of the part that is needed."""

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from flaxres.data._jpeg import decode_above, height_offset
from flaxres.data.decode import crop_box
from tests.data.samples import encoded, numbers_of, photograph


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"subsampling": 0},
        {"subsampling": 1},
        {"restart_marker_rows": 1},
        {"progressive": True},
        {"mode": "L"},
    ],
)
@pytest.mark.parametrize("size", [16, 60, 200])
def test_what_is_left_out_of_a_jpeg_changes_no_pixel_above(
    options: dict[str, object], size: int
) -> None:
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (301, 407, 3), np.uint8)
    ).convert(str(options.get("mode", "RGB")))
    data = encoded(
        image, quality=80, **{key: value for key, value in options.items() if key != "mode"}
    )
    shorter = 0
    for position in range(40):
        box = crop_box(301, 407, numbers_of(position), (0.08, 1), (0.75, 1.33))
        part, factor = decode_above(data, 301, 407, box, size)
        part = part.copy()
        whole = simplejpeg.decode_jpeg(
            data,
            "RGB",
            min_factor=factor,
            min_height=-(-301 // factor),
            min_width=-(-407 // factor),
        )
        assert min(box[2:]) >= factor * size or factor == 1
        needed = -(-(box[0] + box[2]) // factor)
        np.testing.assert_array_equal(part[:needed], whole[:needed])
        shorter += len(part) < len(whole)
    whole_only = {"progressive", "restart_marker_rows"} & set(options)
    assert bool(shorter) != bool(whole_only)


def test_a_jpeg_of_several_scans_keeps_its_height() -> None:
    data = encoded(photograph(64, 64))
    at = data.index(b"\xff\xda")
    assert height_offset(data) == data.index(b"\xff\xc0") + 5
    assert height_offset(data[: at + 4] + b"\x01" + data[at + 5 :]) is None, (
        "its first scan has one of three components"
    )
    assert height_offset(data[:at]) is None
    assert height_offset(b"\xff\xd8" + b"\xff") is None


def test_damage_inside_the_part_that_is_decoded_is_not_let_pass() -> None:
    """Damages a JPEG: the warning about the missing rows must not hide another one.

    Pillow then reads what it can, as for a whole file.
    """
    data = bytearray(
        encoded(
            Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)),
            quality=90,
        )
    )
    start = data.index(b"\xff\xda") + 400
    data[start : start + 40] = b"\xff\x01" * 20
    box = (0, 0, 60, 200)
    with pytest.raises(ValueError, match="orrupt"):
        decode_above(bytes(data), 256, 256, box, 32)
