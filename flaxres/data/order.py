"""The order of samples and their randomness on the host: pure functions of (seed, position), the same in NumPy and in JAX.

A position counts samples from the start of training, over all epochs; `position // n` is the epoch. The generator is Threefry-2x32
(Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), which is JAX's own; the order of an epoch is a Feistel network over
it (Luby & Rackoff 1988) that walks until it lands inside the range. No state, no table of n numbers, and any position at once.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# What a stream of numbers is for; far from the small numbers that are folded into JAX keys, so that no two streams are the same.
ORDER, CROP, FLIP = 0x6F726465, 0x63726F70, 0x666C6970
# Four rounds are a random permutation in theory (Luby & Rackoff); on domains of 16 numbers they were measurably uneven, eight are not.
ROUNDS = 8
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(key: tuple[Any, Any], counter: tuple[Any, Any]) -> tuple[Any, Any]:
    """Threefry-2x32-20 of uint32 words, NumPy or JAX, broadcast against each other."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    a, b = counter[0] + keys[0], counter[1] + keys[1]
    for five in range(5):
        for rotation in ROTATIONS[five % 2]:
            a = a + b
            b = (b << np.uint32(rotation)) | (b >> np.uint32(32 - rotation))
            b = b ^ a
        a = a + keys[(five + 1) % 3]
        b = b + keys[(five + 2) % 3] + np.uint32(five + 1)
    return a, b


def seed_words(seed: int) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray([seed & 0xFFFFFFFF], np.uint32), np.asarray(
        [seed >> 32 & 0xFFFFFFFF], np.uint32
    )


def uniforms(seed: int, positions: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """float64 numbers in [0, 1), (N, *shape), of which each row belongs to the sample at one of the (N,) positions."""
    count = math.prod(shape)
    words = np.asarray(positions, np.uint32)[:, None]
    key = threefry(seed_words(seed), (words, np.asarray([CROP], np.uint32)))
    first, second = threefry(
        key, (np.arange((count + 1) // 2, dtype=np.uint32), np.zeros(1, np.uint32))
    )
    return (np.concatenate([first, second], 1)[:, :count] / 2.0**32).reshape(len(words), *shape)


def mirrored(positions: Any, size: int, seed: int) -> Any:
    """(N,) whether the samples at uint32 `positions` are mirrored: a random half of the records in the first epoch, then each in every second one
    (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3.6). NumPy in, NumPy out; JAX likewise.
    """
    word, _ = threefry(
        seed_words(seed), (sample_ids(positions, size, seed), np.asarray([FLIP], np.uint32))
    )
    return (word + positions // np.uint32(size)) % np.uint32(2) == 1


def step_positions(step: Any, batch: int) -> Any:
    """(batch,) uint32: the positions of the samples of a step; NumPy for an int, JAX for an array."""
    numbers: Any = jnp if isinstance(step, jax.Array) else np
    return numbers.asarray(step, np.uint32) * np.uint32(batch) + numbers.arange(
        batch, dtype=np.uint32
    )


def training_ids(positions: Any, size: int, seed: int, batch: int, repeats: int = 1) -> Any:
    """Record numbers for uint32 `positions`, where each record comes `repeats` times in its batch (Hoffer et al. 2020, section 3).

    The copies lie `batch // repeats` rows apart, so that neighbours, which mixup mixes, are different images. An epoch is still `size` samples
    long, and so sees a share `1 / repeats` of the records, as in timm and torchvision.
    """
    if repeats == 1:
        return sample_ids(positions, size, seed)
    different = np.uint32(batch // repeats)
    return sample_ids(
        positions // np.uint32(batch) * different + positions % np.uint32(batch) % different,
        size,
        seed,
    )


def sample_ids(positions: Any, size: int, seed: int) -> Any:
    """Record numbers in [0, size) for uint32 `positions`; each epoch is a permutation of all records. NumPy in, NumPy out; JAX likewise."""
    numbers: Any = jnp if isinstance(positions, jax.Array) else np
    n = np.uint32(size)
    half = np.uint32((max(size - 1, 1).bit_length() + 1) // 2)
    mask = np.uint32((1 << int(half)) - 1)
    epoch, offset = positions // n, positions % n
    key = threefry(seed_words(seed), (epoch, np.asarray([ORDER], np.uint32)))

    def walk(value: Any) -> Any:
        left, right = value >> half, value & mask
        for turn in range(ROUNDS):
            mixed, _ = threefry(key, (right, np.asarray([turn], np.uint32)))
            left, right = right, left ^ (mixed & mask)
        return (left << half) | right

    value = walk(offset)
    if numbers is np:
        while (outside := value >= n).any():
            value = np.where(outside, walk(value), value)
        return value
    return lax.while_loop(lambda v: (v >= n).any(), lambda v: jnp.where(v >= n, walk(v), v), value)
