"""Memory of decoding and prediction stays small, whatever the shape and number of images."""

import io
import subprocess
import sys
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from flaxres.data.choices import Interpolation
from flaxres.data.images import shrink_image
from flaxres.data.preprocess import Preprocess
from flaxres.inference import predict
from flaxres.inference.predict import Predictor
from flaxres.serving.crop import FILTERS, centre_crop, open_image, to_rgb
from tests.data.samples import encoded


class Means(nn.Module):
    """A network of one layer on the mean colour."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        return nn.Dense(3)(images.mean((1, 2)))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def whole(image: Image.Image, size: int, resize: int, interpolation: str) -> np.ndarray:
    """Resizes the whole image with Pillow and crops it."""
    short = min(image.size)
    image = image.resize(
        tuple(int(resize * side / short) for side in image.size), FILTERS[interpolation]
    )
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("width", "height"), [(1, 9), (3, 100), (100, 3), (7, 113), (70, 997), (997, 70), (300, 2401)]
)
@pytest.mark.parametrize(("size", "resize"), [(56, 64), (64, 64), (80, 64), (57, 61)])
def test_the_crop_of_a_long_image_is_that_of_the_whole_resized_one(
    width: int, height: int, size: int, resize: int, interpolation: Interpolation
) -> None:
    image = noise(width, height)
    crop = centre_crop(encoded(image, "PNG"), size, resize, interpolation)
    expected = whole(image, size, resize, interpolation)
    assert np.abs(crop.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("width", "height"), [(100, 800), (800, 100), (333, 500), (640, 480)])
def test_ordinary_images_are_resized_as_a_whole_to_the_bit(width: int, height: int) -> None:
    image = noise(width, height)
    for interpolation in ("bilinear", "bicubic"):
        np.testing.assert_array_equal(
            centre_crop(encoded(image, "PNG"), 56, 64, interpolation),  # type: ignore[arg-type]
            whole(image, 56, 64, interpolation),
        )


CROP = """
import io, resource, sys
from PIL import Image
from flaxres.serving.crop import centre_crop
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for size in ((1, 6_000), (6_000, 1), (1, 65_500), (2, 65_500)):
    data = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(data, "PNG")
    crop = centre_crop(data.getvalue(), 224, 256, "bilinear")
    assert crop.shape == (224, 224, 3) and (crop == (200, 30, 30)).all()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_narrow_images_take_little_memory() -> None:
    done = subprocess.run([sys.executable, "-c", CROP], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 50


def test_16_bits_of_grey_are_scaled_and_rounded() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG")
    rgb = np.asarray(to_rgb(open_image(buffer.getvalue())))
    expected = (levels.astype(np.float64) / 257).round()
    np.testing.assert_array_equal(rgb, np.repeat(expected[..., None], 3, -1))


def test_an_image_too_long_for_a_jpeg_is_kept() -> None:
    data = encoded(Image.new("RGB", (20, 70_000)), "PNG")
    assert shrink_image(data, 19, 90) == ("PNG kept", data)


def test_predictions_of_many_images_take_the_memory_of_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: Any = Means()
    variables = model.init(jax.random.key(0), np.zeros((1, 32, 32, 3)))
    images = [noise(40, 40, seed) for seed in range(7)]
    predictor = Predictor(model, variables, Preprocess(32, 32), ("a", "b", "c"))
    together = predictor(images, 3)
    sizes: list[int] = []
    real = Preprocess.__call__

    def counted(self: Preprocess, several: list[Image.Image]) -> np.ndarray:
        sizes.append(len(several))
        return real(self, several)

    monkeypatch.setattr(Preprocess, "__call__", counted)
    monkeypatch.setattr(predict, "BATCH", 4)
    parts = predictor(images, 3)
    assert sizes == [4, 3]
    for one, other in zip(parts, together, strict=True):
        assert [name for name, _ in one] == [name for name, _ in other]
        np.testing.assert_allclose([p for _, p in one], [p for _, p in other], atol=1e-6)
    assert predictor([]) == []
