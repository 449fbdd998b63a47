"""Operations on images on the device: each is Pillow's."""

import math
import pathlib
import tarfile
from collections.abc import Callable

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from flaxres.data.operations import NUMBER, OPERATIONS, apply, blend

FILL = (124, 116, 104)
SIZE = (90, 70)  # width, height


def scene(seed: int) -> Image.Image:
    """Returns an image that every operation changes: smooth shapes, noise and a flat corner."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    waves = [
        40 * math.pi**0.5 * np.sin((x * a + y * b) / 9 + c) + 110
        for a, b, c in rng.uniform(0.2, 1, (3, 3))
    ]
    pixels = np.stack(waves, -1) + rng.normal(0, 6, (SIZE[1], SIZE[0], 3))
    pixels[:20, :30] = rng.integers(30, 220, 3)
    return Image.fromarray(pixels.clip(20, 230).astype(np.uint8))


SCENES = [scene(i) for i in range(4)]


def affine(*matrix: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.BILINEAR,
        fillcolor=FILL,
    )


def solarize_add(image: Image.Image) -> Image.Image:
    return image.point([min(255, i + 60) if i < 128 else i for i in range(256)] * 3)


CASES: list[tuple[str, float, Callable[[Image.Image], Image.Image]]] = [
    ("identity", 0, lambda image: image),
    ("auto_contrast", 0, ImageOps.autocontrast),
    ("equalize", 0, ImageOps.equalize),
    ("invert", 0, ImageOps.invert),
    *(
        (
            "rotate",
            degrees,
            lambda image, d=degrees: image.rotate(d, Image.Resampling.BILINEAR, fillcolor=FILL),
        )
        for degrees in (30.0, -11.5, 135.0)
    ),
    *(
        ("posterize", bits, lambda image, b=bits: ImageOps.posterize(image, b))
        for bits in (1, 3, 8)
    ),
    *(
        ("solarize", level, lambda image, t=level: ImageOps.solarize(image, t))
        for level in (0, 77, 256)
    ),
    ("solarize_add", 60, solarize_add),
    *(
        ("color", factor, lambda image, f=factor: ImageEnhance.Color(image).enhance(f))
        for factor in (0.1, 0.7, 1.9)
    ),
    *(
        ("contrast", factor, lambda image, f=factor: ImageEnhance.Contrast(image).enhance(f))
        for factor in (0.1, 1.9)
    ),
    *(
        ("brightness", factor, lambda image, f=factor: ImageEnhance.Brightness(image).enhance(f))
        for factor in (0.1, 1.9)
    ),
    *(
        ("sharpness", factor, lambda image, f=factor: ImageEnhance.Sharpness(image).enhance(f))
        for factor in (0.1, 1.9)
    ),
    ("shear_x", 0.3, affine(1, 0.3, 0, 0, 1, 0)),
    ("shear_x", -0.99, affine(1, -0.99, 0, 0, 1, 0)),
    ("shear_y", -0.21, affine(1, 0, 0, -0.21, 1, 0)),
    ("translate_x", 12.4, affine(1, 0, 12.4, 0, 1, 0)),
    ("translate_y", -9, affine(1, 0, 0, 0, 1, -9)),
]


@pytest.mark.parametrize(
    ("name", "level", "by_pillow"), CASES, ids=[f"{name}-{level}" for name, level, _ in CASES]
)
def test_each_operation_is_pillows(
    name: str, level: float, by_pillow: Callable[[Image.Image], Image.Image]
) -> None:
    images = np.stack([np.asarray(image) for image in SCENES])
    count = len(images)
    ours = np.asarray(
        apply(
            images, np.full(count, NUMBER[name], np.int32), np.full(count, level, np.float32), FILL
        )
    ).astype(int)
    differences = np.abs(ours - np.stack([np.asarray(by_pillow(image)) for image in SCENES]))
    assert (differences <= 1).mean() >= 0.99
    assert differences.mean() < 0.1
    if name not in ("identity", "posterize", "solarize"):
        assert np.abs(ours - images).mean() > 0.5, "nothing was changed"


def test_pictures_of_a_batch_keep_to_their_own_operation() -> None:
    images = np.stack([np.asarray(SCENES[i % 4]) for i in range(len(OPERATIONS))])
    levels = np.linspace(0.2, 1.8, len(OPERATIONS), dtype=np.float32)
    together = np.asarray(apply(images, np.arange(len(OPERATIONS), dtype=np.int32), levels, FILL))
    for i in range(len(OPERATIONS)):
        alone = np.asarray(
            apply(images[i : i + 1], np.asarray([i], np.int32), levels[i : i + 1], FILL)
        )[0]
        np.testing.assert_array_equal(together[i], alone)


def test_a_real_photograph_is_changed_as_pillow_changes_it(shared: pathlib.Path) -> None:
    with tarfile.open(shared / "imagenet_sample.tar") as tar:
        file = tar.extractfile(next(member for member in tar if member.isfile()))
        assert file is not None
        photograph = Image.open(file).convert("RGB").resize((224, 224))
    for name, level, by_pillow in CASES:
        ours = np.asarray(
            apply(
                np.asarray(photograph)[None],
                np.asarray([NUMBER[name]], np.int32),
                np.asarray([level], np.float32),
                FILL,
            )
        )[0]
        assert (np.abs(ours.astype(int) - np.asarray(by_pillow(photograph))) <= 1).mean() >= 0.99, (
            name
        )


def test_a_product_is_rounded_before_a_sum() -> None:
    """A compiler that rounds both at once gives 0, 64 and 0."""
    images = np.asarray([34, 164, 100], np.uint8).reshape(3, 1, 1, 1)
    others = np.asarray([134, 14, 225], np.uint8).reshape(3, 1, 1, 1)
    steps = np.asarray([10, -20, 24], np.float32) / np.float32(30)
    factor = np.float32(1) + np.float32(0.99) * steps
    assert np.asarray(jax.jit(blend)(images, others, factor)).ravel().tolist() == [1, 65, 1]
