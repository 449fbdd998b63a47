"""Augmentation on the device: what it does, and that it does the same on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxres.data.augment import normalise, random_flip, random_shift, sample_keys
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
    seen = set()
    for image, wide in zip(shifted, padded, strict=True):
        at = [(y, x) for y in range(5) for x in range(5) if (wide[y : y + 8, x : x + 8] == image).all()]
        assert at, "not a window of the padded image"
        seen |= set(at)
    assert len(seen) > 18
    assert random_shift(KEYS, IMAGES, 0) is IMAGES


@pytest.mark.parametrize("devices", [2, 8])
def test_the_number_of_devices_changes_nothing(devices: int) -> None:
    def augmented(images: jax.Array, positions: jax.Array) -> jax.Array:
        keys = sample_keys(jax.random.key(3), positions)
        return random_flip(keys, random_shift(keys, images, 2))

    positions = np.arange(1000, 1064, dtype=np.uint32)
    expected = jax.jit(augmented)(IMAGES, positions)
    data = split(data_mesh(devices))
    np.testing.assert_array_equal(jax.jit(augmented, in_shardings=data, out_shardings=data)(IMAGES, positions), expected)
    # A sample keeps its augmentation in whatever batch it comes.
    np.testing.assert_array_equal(jax.jit(augmented)(IMAGES[5:7], positions[5:7]), expected[5:7])


def test_normalise_is_the_formula() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (IMAGES / 255 - np.asarray(mean)) / np.asarray(std)
    np.testing.assert_allclose(normalise(IMAGES, mean, std, jnp.float32), expected, atol=2e-6)
    assert normalise(IMAGES, mean, std, jnp.bfloat16).dtype == jnp.bfloat16
