"""Crops: evaluation is Pillow's to the bit, and the training crop follows its rule."""

import io
import pathlib
import tarfile

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from flaxres.data.decode import TRIES, crop_box, random_resized_crop, resize
from flaxres.serving.crop import centre_crop
from tests.data.samples import encoded, numbers_of, photograph


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (256, 256), (100, 80)])
def test_evaluation_is_pillows_resize_and_centre_crop(width: int, height: int) -> None:
    data = encoded(photograph(width, height))
    image = Image.open(io.BytesIO(data)).convert("RGB")
    short = min(width, height)
    image = image.resize(
        (int(64 * width / short), int(64 * height / short)), Image.Resampling.BILINEAR
    )
    left, top = round((image.width - 56) / 2), round((image.height - 56) / 2)
    np.testing.assert_array_equal(
        centre_crop(data, 56, 64, "bilinear"), np.asarray(image)[top : top + 56, left : left + 56]
    )


def test_crop_boxes_lie_inside_and_have_the_asked_area_and_ratio() -> None:
    areas, ratios = [], []
    for position in range(2000):
        top, left, height, width = crop_box(
            300, 400, numbers_of(position), (0.08, 1.0), (3 / 4, 4 / 3)
        )
        assert 0 <= top <= 300 - height
        assert 0 <= left <= 400 - width
        areas.append(height * width / 120_000)
        ratios.append(width / height)
    assert 0.075 < min(areas) < 0.1
    assert max(areas) > 0.9
    assert 0.73 < min(ratios) < 0.76
    assert 1.31 < max(ratios) < 1.35
    # Log-uniform, so wide and tall crops are equally likely. The image is wide, which excludes some
    # of the tall ones.
    assert 0.45 < np.mean(np.asarray(ratios) > 1) < 0.65


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(10, 1000, (0, 493, 10, 13)), (1000, 10, (493, 0, 13, 10))]
)
def test_an_image_too_long_for_any_crop_gets_the_central_one(
    height: int, width: int, expected: tuple[int, ...]
) -> None:
    whole = np.full((TRIES, 4), 0.999)
    assert crop_box(height, width, whole, (0.99, 1.0), (3 / 4, 4 / 3)) == pytest.approx(
        expected, abs=2
    )


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_the_training_crop_is_the_box_resized(form: str) -> None:
    image = photograph(640, 480)
    data = encoded(image, form, **({"quality": 95} if form == "JPEG" else {}))
    reference = Image.open(io.BytesIO(data)).convert("RGB")
    for position in range(20):
        numbers = numbers_of(position)
        top, left, height, width = crop_box(480, 640, numbers, (0.08, 1.0), (3 / 4, 4 / 3))
        expected = np.asarray(
            reference.resize(
                (64, 64), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
            ),
            int,
        )
        ours = random_resized_crop(
            data, 64, numbers, (0.08, 1.0), (3 / 4, 4 / 3), "bilinear"
        ).astype(int)
        assert ours.shape == (64, 64, 3)
        assert np.abs(ours - expected).mean() < (
            1.5 if form == "JPEG" else 1e-9
        )  # libjpeg's scaled decoding blurs a little otherwise


def test_real_photographs_decode(shared: pathlib.Path) -> None:
    with tarfile.open(shared / "imagenet_sample.tar") as tar:
        for i, member in zip(range(40), (m for m in tar if m.isfile()), strict=False):
            file = tar.extractfile(member)
            assert file is not None
            data = file.read()
            assert (
                random_resized_crop(
                    data, 224, numbers_of(i), (0.08, 1), (3 / 4, 4 / 3), "bilinear"
                ).std()
                > 1
            )
            assert centre_crop(data, 224, 256, "bilinear").shape == (224, 224, 3)


def test_the_fast_resize_is_close_to_pillows(shared: pathlib.Path) -> None:
    differences, aliased = [], []
    with tarfile.open(shared / "imagenet_sample.tar") as tar:
        for i, member in zip(range(60), (m for m in tar if m.isfile()), strict=False):
            file = tar.extractfile(member)
            assert file is not None
            data = file.read()
            ours, pillows = (
                random_resized_crop(
                    data, 224, numbers_of(i), (0.08, 1), (0.75, 1.33), interpolation
                ).astype(int)
                for interpolation in ("fast", "bilinear")
            )
            differences.append(np.abs(ours - pillows).mean())
            image = simplejpeg.decode_jpeg(data, "RGB")
            top, left, h, w = crop_box(*image.shape[:2], numbers_of(i), (0.08, 1), (0.75, 1.33))
            aliased.append(
                np.abs(
                    cv2.resize(image[top : top + h, left : left + w], (224, 224)).astype(int)
                    - pillows
                ).mean()
            )
    assert np.mean(differences) < 1
    assert np.mean(differences) < 0.6 * np.mean(aliased), (
        "antialiasing is what makes the difference"
    )


@pytest.mark.parametrize(
    "shape", [(64, 64), (64, 300), (300, 64), (40, 50), (1000, 90), (129, 128)]
)
def test_every_shape_of_crop_is_resized(shape: tuple[int, int]) -> None:
    image = np.asarray(photograph(shape[1], shape[0]))
    for interpolation in ("fast", "bilinear", "bicubic"):
        result = resize(image, (0, 0, *shape), 1, 64, interpolation)
        assert result.shape == (64, 64, 3)
        assert not np.shares_memory(result, image)
        expected = np.asarray(
            Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR)
        ).astype(int)
        assert np.abs(result - expected).mean() < 4
