"""Values that a preprocessing takes for an image, and those that it refuses."""

import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from flaxres.data.preprocess import Preprocess
from flaxres.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
PREPROCESS = Preprocess(size=32, resize=36)


@pytest.fixture
def png(tmp_path: pathlib.Path) -> pathlib.Path:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_every_form_of_an_image_gives_the_same_batch(png: pathlib.Path) -> None:
    data, expected = png.read_bytes(), PREPROCESS(png)
    with png.open("rb") as file:
        forms = [
            *(str(png), data, bytearray(data), memoryview(data), Image.open(png), PIXELS),
            *(PIXELS[None], [PIXELS], io.BytesIO(data), file, [io.BytesIO(data)]),
        ]
        for form in forms:
            np.testing.assert_array_equal(PREPROCESS(form), expected)
    grey = PIXELS[..., 0]
    np.testing.assert_array_equal(PREPROCESS(grey), PREPROCESS(grey[..., None]))


def test_no_images_are_an_empty_batch() -> None:
    assert PREPROCESS([]).shape == (0, 32, 32, 3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "an image is of type NoneType: give a path"),
        (PIXELS.astype(np.float32), r"an array of float32 and shape \(50, 60, 3\): the rule is"),
        (PIXELS[..., :2], r"an array of uint8 and shape \(50, 60, 2\)"),
        (Image.new("RGB", (0, 10)), "0 x 10 pixels: there is nothing to see"),
        ("a\0b", "can't be read .*null"),
        ("/nothing.png", "'/nothing.png' can't be read"),
    ],
)
def test_other_values_are_refused_by_name(image: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PREPROCESS([image])  # type: ignore[list-item]
