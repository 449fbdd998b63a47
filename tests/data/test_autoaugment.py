"""RandAugment and TrivialAugmentWide: each operation is Pillow's, and the policies draw what timm's and torchvision's draw."""

import dataclasses
import math
import pathlib
import tarfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from flaxres.data.augment import sample_keys
from flaxres.data.autoaugment import (
    NUMBER,
    OPERATIONS,
    RAND_OPERATIONS,
    TRIVIAL_OPERATIONS,
    RandAugment,
    TrivialAugmentWide,
    apply,
    policy,
)
from flaxres.errors import InputError

FILL = (124, 116, 104)
SIZE = (90, 70)  # width, height


def scene(seed: int) -> Image.Image:
    """Smooth shapes, noise and a flat corner, in which every operation does something."""
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
        picture = Image.open(file).convert("RGB").resize((224, 224))
    for name, level, by_pillow in CASES:
        ours = np.asarray(
            apply(
                np.asarray(picture)[None],
                np.asarray([NUMBER[name]], np.int32),
                np.asarray([level], np.float32),
                FILL,
            )
        )[0]
        assert (np.abs(ours.astype(int) - np.asarray(by_pillow(picture))) <= 1).mean() >= 0.99, name


def test_timms_form_is_understood_and_anything_else_refused() -> None:
    assert policy("rand-m7-mstd0.5-inc1") == RandAugment(7, 2, 0.5, 0.5, True)
    assert policy("rand-m9-n3-p1-inc0") == RandAugment(9, 3, 0, 1, False)
    assert policy("rand-m6-mstd101") == RandAugment(6, 2, math.inf)
    assert policy("ta_wide") == TrivialAugmentWide()
    for text in (
        "",
        "rand-x3",
        "random",
        "rand-m11",
        "rand-n0",
        "rand-n1.5",
        "rand-m7-m8",
        "rand-inc2",
        "rand-p2",
        "augmix",
        "rand-m7-",
    ):
        with pytest.raises(InputError, match="the rule is 'ta_wide', or timm's"):
            policy(text)


def test_rand_augment_draws_all_operations_alike_and_its_levels_follow_the_magnitude() -> None:
    keys = sample_keys(jax.random.key(1), jnp.arange(6000, dtype=jnp.uint32))
    chosen = RandAugment(7, 2, 0.5, 0.5, True)
    layers = chosen.draw(keys, (200, 100))
    assert len(layers) == 2
    for operation, level in layers:
        counts = np.bincount(operation, minlength=len(OPERATIONS))
        assert 0.46 < counts[0] / 6000 < 0.54, "each layer is applied with probability 1/2"
        assert counts[1:].min() > 140, "15 operations alike: 200 expected of each"
        assert counts[1:].max() < 260
        rotations = np.asarray(level)[operation == NUMBER["rotate"]]
        assert 0.35 < (rotations > 0).mean() < 0.65
        assert abs(np.abs(rotations).mean() - 21) < 0.5
        assert 1 < np.abs(rotations).std() < 2  # 0.5 of 10, of 30 degrees
    assert not np.array_equal(layers[0][0], layers[1][0])


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("magnitude", [0.0, 3.7, 6.0, 10.0])
def test_levels_are_timms(magnitude: float, increasing: bool) -> None:
    peers = pytest.importorskip("benchmarks.peers")
    try:
        peers.torch_and_timm()
    except ModuleNotFoundError as error:
        pytest.skip(f"{error}: needs the extra 'parity'")
    from timm.data import auto_augment

    ours = RandAugment(increasing=increasing).levels(
        jnp.asarray([magnitude]), jnp.ones(1), (200, 100)
    )[0]
    names = {
        "rotate": "Rotate",
        "solarize_add": "SolarizeAdd",
        "shear_x": "ShearX",
        "shear_y": "ShearY",
    }
    suffix = "Increasing" if increasing else ""
    names |= {
        name: name.capitalize() + suffix
        for name in ("posterize", "solarize", "color", "contrast", "brightness", "sharpness")
    }
    names |= {"translate_x": "TranslateXRel", "translate_y": "TranslateYRel"}
    for name, timms in names.items():
        function, results = auto_augment.LEVEL_TO_ARG[timms], set()
        for _ in range(30):  # the sign is random there
            value = function(magnitude, {})
            results.add(
                float(value[0] if isinstance(value, tuple) else value)
                * {"translate_x": 100, "translate_y": 200}.get(name, 1)
            )
        assert (
            min(abs(float(ours[RAND_OPERATIONS.index(name)]) - value) for value in results) < 1e-4
        ), name


def test_trivial_augment_draws_every_strength_of_every_operation() -> None:
    keys = sample_keys(jax.random.key(2), jnp.arange(20_000, dtype=jnp.uint32))
    ((operation, level),) = TrivialAugmentWide().draw(keys, (224, 224))
    counts = np.bincount(operation, minlength=len(OPERATIONS))
    assert counts[[NUMBER["invert"], NUMBER["solarize_add"]]].tolist() == [0, 0]
    assert counts[[NUMBER[name] for name in TRIVIAL_OPERATIONS]].min() > 1200  # 1,429 expected
    levels = {
        name: np.unique(np.asarray(level)[operation == NUMBER[name]]) for name in TRIVIAL_OPERATIONS
    }
    assert levels["posterize"].tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert (len(levels["rotate"]), levels["rotate"].max()) == (61, 135)
    assert levels["translate_x"].tolist() == sorted(
        {sign * (32 * i // 30) for i in range(31) for sign in (-1, 1)}
    )
    assert levels["brightness"].min() == pytest.approx(0.01)
    assert levels["solarize"].min() == 0
    assert levels["solarize"].max() == 255


def test_a_uniform_magnitude_spreads_from_zero() -> None:
    keys = sample_keys(jax.random.key(3), jnp.arange(4000, dtype=jnp.uint32))
    chosen = dataclasses.replace(RandAugment(8, 1, probability=1), deviation=math.inf)
    ((operation, level),) = chosen.draw(keys, (224, 224))
    rotations = np.abs(np.asarray(level)[operation == NUMBER["rotate"]])
    assert rotations.max() <= 24
    assert 10 < rotations.mean() < 14
