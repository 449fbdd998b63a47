"""Augmentation on the device: its results, which are the same on any number of devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flaxres import AugmentConfig, DataConfig
from flaxres.data import quantiles
from flaxres.data.augment import (
    color_jitter,
    cutout,
    normalise,
    random_erasing,
    random_flip,
    random_shift,
    sample_keys,
    turn_hue,
)
from flaxres.data.mixing import mix
from flaxres.training.augmentation import augmented
from flaxres.training.mesh import data_mesh, split

IMAGES = np.random.default_rng(0).integers(1, 256, (64, 8, 8, 3), np.uint8)
KEYS = sample_keys(jax.random.key(0), jnp.arange(64, dtype=jnp.uint32))


def test_half_of_the_images_are_mirrored() -> None:
    flipped = np.asarray(random_flip(KEYS, IMAGES))
    mirrored = np.asarray([(a == b[:, ::-1]).all() for a, b in zip(flipped, IMAGES, strict=True)])
    assert 16 < mirrored.sum() < 48
    np.testing.assert_array_equal(flipped[~mirrored], IMAGES[~mirrored])


def test_shifts_are_windows_of_the_padded_image_and_all_of_them_happen() -> None:
    shifted = np.asarray(random_shift(KEYS, jnp.asarray(IMAGES), 2))
    padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)))
    offsets = set()
    for image, wide in zip(shifted, padded, strict=True):
        at = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if (wide[y : y + 8, x : x + 8] == image).all()
        ]
        assert at, "not a window of the padded image"
        offsets |= set(at)
    assert len(offsets) > 18
    assert random_shift(KEYS, IMAGES, 0) is IMAGES


@pytest.mark.parametrize("devices", [2, 8])
def test_the_number_of_devices_changes_nothing(devices: int) -> None:
    def augmented(images: jax.Array, positions: jax.Array) -> jax.Array:
        keys = sample_keys(jax.random.key(3), positions)
        return random_flip(keys, random_shift(keys, images, 2))

    positions = np.arange(1000, 1064, dtype=np.uint32)
    expected = jax.jit(augmented)(IMAGES, positions)
    data = split(data_mesh(devices))
    np.testing.assert_array_equal(
        jax.jit(augmented, in_shardings=data, out_shardings=data)(IMAGES, positions), expected
    )
    # A sample keeps its augmentation in whatever batch it comes.
    np.testing.assert_array_equal(jax.jit(augmented)(IMAGES[5:7], positions[5:7]), expected[5:7])


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        AugmentConfig(color_jitter=(0.4, 0.4, 0.4, 0.1), auto="ta_wide"),
        AugmentConfig(auto="rand-m9-n2-mstd0.5-p0.9-inc1", erase=0.9),
    ],
)
def test_the_compiler_changes_nothing(settings: AugmentConfig) -> None:
    """Op by op, each result is rounded by itself; a compiled program must agree to the bit.

    Otherwise images depend on what the compiler fuses, and so on the number of devices.
    """

    def images(batch: dict[str, jax.Array]) -> jax.Array:
        data = DataConfig(mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
        return augmented(batch, data, settings, 2**31 - 1, 1000, jnp.float32).round()

    pixels = np.random.default_rng(1).integers(0, 256, (512, 8, 8, 3), np.uint8)
    batch = {"image": jnp.asarray(pixels), "position": jnp.arange(512, dtype=jnp.uint32)}
    np.testing.assert_array_equal(jax.jit(images)(batch), images(batch))


def test_normalise_is_the_formula() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (IMAGES / 255 - np.asarray(mean)) / np.asarray(std)
    np.testing.assert_allclose(normalise(IMAGES, mean, std, jnp.float32), expected, atol=2e-6)
    assert normalise(IMAGES, mean, std, jnp.bfloat16).dtype == jnp.bfloat16


SCENES = jnp.asarray(np.random.default_rng(1).integers(0, 256, (64, 24, 20, 3), np.uint8))


def jittered(strength: tuple[float, float, float, float]) -> np.ndarray:
    return np.asarray(color_jitter(KEYS, SCENES, strength)).astype(int)


def test_color_jitter_changes_what_it_is_asked_to() -> None:
    assert color_jitter(KEYS, SCENES, (0, 0, 0, 0)) is SCENES
    ratios = jittered((0.4, 0, 0, 0)).mean((1, 2, 3)) / np.asarray(SCENES).mean((1, 2, 3))
    assert ratios.min() < 0.75
    assert ratios.max() > 1.1
    assert (
        np.abs(
            jittered((0, 0.4, 0, 0)).std((1, 2, 3)) / np.asarray(SCENES).std((1, 2, 3)) - 1
        ).max()
        > 0.2
    )
    assert (
        np.abs(
            jittered((0, 0, 1.0, 0)).std(-1).mean((1, 2)) / np.asarray(SCENES).std(-1).mean((1, 2))
            - 1
        ).max()
        > 0.4
    )
    turned = jittered((0, 0, 0, 0.5))
    np.testing.assert_allclose(
        turned.max(-1), np.asarray(SCENES).max(-1)
    )  # a rotation of the hue keeps the value
    assert np.abs(turned - np.asarray(SCENES)).mean() > 20


def test_hue_is_pillows() -> None:
    for share in (-0.5, -0.1, 0.0, 0.07, 0.5):
        ours = np.asarray(turn_hue(SCENES, jnp.full(len(SCENES), share, jnp.float32))).astype(int)
        for image, result in zip(np.asarray(SCENES), ours, strict=True):
            hue, saturation, value = Image.fromarray(image).convert("HSV").split()
            moved = Image.fromarray(
                (np.asarray(hue).astype(int) + int(share * 255)).astype(np.uint8)
            )
            expected = np.asarray(
                Image.merge("HSV", (moved, saturation, value)).convert("RGB")
            ).astype(int)
            assert (np.abs(result - expected) <= 1).mean() > 0.99


def test_jitter_is_torchvisions_for_the_same_factors() -> None:
    """Fits the factor of a single change to the result, and compares with Pillow.

    With one strength at a time the order has no effect.
    """
    from PIL import ImageEnhance

    for strength, enhance in (
        ((0.5, 0, 0, 0), ImageEnhance.Brightness),
        ((0, 0.5, 0, 0), ImageEnhance.Contrast),
        ((0, 0, 0.5, 0), ImageEnhance.Color),
    ):
        for image, result in zip(np.asarray(SCENES)[:8], jittered(strength)[:8], strict=True):
            errors = [
                np.abs(np.asarray(enhance(Image.fromarray(image)).enhance(factor)) - result).mean()
                for factor in np.linspace(0.5, 1.5, 201)
            ]
            assert min(errors) < 1


def test_erasing_blanks_one_rectangle_of_the_asked_area_in_the_asked_share() -> None:
    keys = sample_keys(jax.random.key(5), jnp.arange(800, dtype=jnp.uint32))
    images = jnp.ones((800, 32, 32, 3))
    erased = (
        np.asarray(random_erasing(keys, images, 0.25, (0.02, 1 / 3), (0.3, 1 / 0.3), "zero"))[
            ..., 0
        ]
        == 0
    )
    assert 150 < erased.any((1, 2)).sum() < 250
    for hole in erased[erased.any((1, 2))]:
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert hole.sum() == height * width, "a rectangle"
        assert 0.01 < hole.mean() < 0.37
        assert 0.25 < height / width < 4
    noisy = np.asarray(random_erasing(keys, images, 1.0, (0.1, 0.1), (1, 1), "noise"))
    changed = noisy != 1
    assert 0.08 < changed.mean() < 0.12
    assert abs(noisy[changed].mean()) < 0.05
    assert 0.9 < noisy[changed].std() < 1.1
    assert random_erasing(keys, images, 0.0, (0.1, 0.1), (1, 1), "zero") is images


def test_cutout_blanks_a_square_that_may_reach_over_the_border() -> None:
    keys = sample_keys(jax.random.key(6), jnp.arange(500, dtype=jnp.uint32))
    holes = np.asarray(cutout(keys, jnp.ones((500, 16, 16, 3)), 8))[..., 0] == 0
    areas = holes.sum((1, 2))
    assert areas.max() == 64
    assert areas.min() < 30
    assert cutout(keys, SCENES, 0) is SCENES


def mixing(
    per_example: bool, mixup: float, cut: float, **options: float
) -> tuple[np.ndarray, np.ndarray]:
    images = jnp.broadcast_to(jnp.arange(64.0)[:, None, None, None], (64, 16, 16, 3))
    keys = KEYS if per_example else jax.random.fold_in(jax.random.key(7), 3)
    mixed, targets = mix(keys, images, jnp.eye(64), mixup, cut, **options)
    return np.asarray(mixed), np.asarray(targets)


@pytest.mark.parametrize("per_example", [False, True])
def test_mixup_is_the_formula_between_neighbours(per_example: bool) -> None:
    mixed, targets = mixing(per_example, 0.4, 0)
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
    share = targets[np.arange(64), np.arange(64)]
    np.testing.assert_allclose(targets[np.arange(64), np.arange(64) ^ 1], 1 - share, atol=1e-6)
    expected = share * np.arange(64) + (1 - share) * (np.arange(64) ^ 1)
    np.testing.assert_allclose(
        mixed, np.broadcast_to(expected[:, None, None, None], mixed.shape), atol=1e-4
    )
    assert (len(np.unique(share)) > 30) == per_example
    assert not per_example or 0.3 < share.mean() < 0.7


@pytest.mark.parametrize("per_example", [False, True])
def test_cutmix_pastes_a_rectangle_and_weighs_by_its_area(per_example: bool) -> None:
    mixed, targets = mixing(per_example, 0, 1.0)
    for i, (image, target) in enumerate(zip(mixed[..., 0], targets, strict=True)):
        pasted = image == i ^ 1
        assert (pasted | (image == i)).all()
        assert target[i ^ 1] == pytest.approx(pasted.mean(), abs=1e-6)
        if pasted.any():
            rows, columns = np.flatnonzero(pasted.any(1)), np.flatnonzero(pasted.any(0))
            assert pasted.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    assert (targets.max(1) < 1).mean() > 0.3


def test_mixing_with_a_probability_and_a_switch() -> None:
    _, targets = mixing(
        True, 0.0001, 1.0, switch=1.0
    )  # a beta this narrow is 0 or 1: without cutmix nothing would be in between
    assert ((targets > 0.05) & (targets < 0.95)).any()
    untouched, targets = mixing(True, 0.4, 1.0, probability=0.0)
    np.testing.assert_array_equal(targets, np.eye(64))
    assert (untouched[:, 0, 0, 0] == np.arange(64)).all()
    half = mixing(True, 0.4, 1.0, probability=0.5)[1].max(1)
    assert 0.3 < (half == 1).mean() < 0.75
    _, both = mixing(True, 0.4, 1.0)
    assert (both.max(1) < 1).mean() > 0.6


def test_mixing_is_the_same_to_the_bit_on_8_devices() -> None:
    """Shares drawn by `jax.random.beta` were not: a fifth of them differed here."""
    count = 2048

    def mixed(positions: jax.Array, images: jax.Array, targets: jax.Array) -> Any:
        keys = sample_keys(jax.random.key(3), positions)
        return mix(keys, images, targets, 0.25, 1.0)

    images = np.random.default_rng(0).standard_normal((count, 4, 4, 3)).astype(np.float32)
    targets = np.eye(10, dtype=np.float32)[np.arange(count) % 10]
    batch = np.arange(count, dtype=np.uint32), images, targets
    ours, theirs = (
        jax.jit(mixed, in_shardings=split(data_mesh(devices)))(*batch) for devices in (1, 8)
    )
    for one, eight in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, eight)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 4.0])
def test_quantiles_are_those_of_numpys_draws(alpha: float) -> None:
    rng, at = np.random.default_rng(0), np.linspace(0.02, 0.98, 49)
    for table, drawn in (
        (quantiles.beta(alpha), rng.beta(alpha, alpha, 200_000)),
        (quantiles.normal(), rng.standard_normal(200_000)),
        (quantiles.log_uniform(0.3, 3.3), np.exp(rng.uniform(*np.log([0.3, 3.3]), 200_000))),
    ):
        assert (np.diff(table) >= 0).all()
        np.testing.assert_allclose(np.quantile(table, at), np.quantile(drawn, at), atol=0.02)
        picked = quantiles.draw(KEYS, table, 500)
        assert picked.shape == (64, 500)
        np.testing.assert_allclose(np.quantile(picked, at), np.quantile(drawn, at), atol=0.06)
