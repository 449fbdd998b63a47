"""The order of samples and their random numbers, as pure functions of the seed and the position.

A position counts samples from the start of training, over all epochs; `position // n` is the epoch
of a dataset of n records. NumPy and JAX compute the same results. There is no state and no table of
n numbers, and any position can be computed by itself.

The generator is Threefry-2x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"),
as in JAX. The order of an epoch is a Feistel network over it (Luby & Rackoff 1988), applied until
the result lies inside the range.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Integer, UInt32

from flaxres.data.balance import Balance, half_bits

Positions = UInt32[np.ndarray, " n"] | UInt32[Array, " n"]
Seed = int | UInt32[Array, ""]
"""A number, or an argument of a compiled program, which then serves every seed."""
Words = UInt32[np.ndarray, "..."] | UInt32[Array, "..."]

# Purposes of random streams. They are far from the small numbers that are folded into JAX keys, so
# no two streams are the same.
ORDER, CROP, FLIP, CLASS = 0x6F726465, 0x63726F70, 0x666C6970, 0x636C6173
# Four rounds are a random permutation in theory (Luby & Rackoff). On domains of 16 numbers they
# were measurably uneven; eight are not.
ROUNDS = 8
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(key: tuple[Any, Any], counter: tuple[Any, Any]) -> tuple[Any, Any]:
    """Computes Threefry-2x32 with 20 rounds.

    Args:
      key: two uint32 words, NumPy or JAX arrays.
      counter: two uint32 words, broadcast against the key.

    Returns:
      Two uint32 words.

    Examples:
      >>> zero = np.zeros(1, np.uint32)
      >>> [hex(int(word[0])) for word in threefry((zero, zero), (zero, zero))]
      ['0x6b200159', '0x99ba4efe']
    """
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


def _seed_words(seed: Seed) -> tuple[Words, Words]:
    """Returns a seed as the two words of a key, (1,) each."""
    if isinstance(seed, jax.Array):
        return seed[None], jnp.zeros(1, jnp.uint32)
    low, high = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    return np.asarray([low], np.uint32), np.asarray([high], np.uint32)


def uniforms(
    seed: int, positions: Integer[np.ndarray, " n"], shape: tuple[int, ...]
) -> Float[np.ndarray, "n ..."]:
    """Draws uniform numbers in [0, 1) for samples.

    Args:
      seed: seed of the run.
      positions: positions of the samples.
      shape: shape of the numbers of one sample.

    Returns:
      float64 numbers; each row depends on its position only.

    Examples:
      >>> numbers = uniforms(0, np.arange(3), (2,))
      >>> numbers.shape, bool((uniforms(0, np.arange(2, 3), (2,))[0] == numbers[2]).all())
      ((3, 2), True)
    """
    count = math.prod(shape)
    words = np.asarray(positions, np.uint32)[:, None]
    key = threefry(_seed_words(seed), (words, np.asarray([CROP], np.uint32)))
    counter = np.arange((count + 1) // 2, dtype=np.uint32)
    first, second = threefry(key, (counter, np.zeros(1, np.uint32)))
    drawn = np.concatenate([first, second], 1)[:, :count] / 2.0**32
    return drawn.reshape(len(words), *shape)


def mirrored(positions: Positions, size: int, seed: Seed) -> Any:
    """Decides which samples are flipped horizontally.

    A random half of the records is flipped in the first epoch, and each record then in every second
    epoch (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3.6).

    Args:
      positions: positions of the samples.
      size: number of records of the dataset.
      seed: seed of the run.

    Returns:
      A mask of shape (n,), NumPy or JAX as `positions`.
    """
    counter = (sample_ids(positions, size, seed), np.asarray([FLIP], np.uint32))
    word, _ = threefry(_seed_words(seed), counter)
    return (word + positions // np.uint32(size)) % np.uint32(2) == 1


def step_positions(step: Any, batch: int) -> Any:
    """Returns the positions of the samples of a step.

    Args:
      step: number of the step, an int or a JAX scalar.
      batch: number of samples of a step.

    Returns:
      uint32 positions of shape (batch,): NumPy for an int, JAX for a JAX scalar.

    Examples:
      >>> step_positions(2, 4)
      array([ 8,  9, 10, 11], dtype=uint32)
    """
    numbers: Any = jnp if isinstance(step, jax.Array) else np
    within = numbers.arange(batch, dtype=np.uint32)
    return numbers.asarray(step, np.uint32) * np.uint32(batch) + within


def training_ids(
    positions: Positions,
    size: int,
    seed: Seed,
    batch: int,
    repeats: int = 1,
    balance: Balance | None = None,
) -> Any:
    """Returns the record number of each sample of training.

    With repeated augmentation (Hoffer et al. 2020, section 3) each record occurs `repeats` times in
    its batch. The copies are `batch // repeats` rows apart, so neighbours, which mixup mixes, are
    different images. An epoch is still `size` samples long. It therefore covers a share
    `1 / repeats` of the records, as in timm and torchvision.

    Args:
      positions: positions of the samples.
      size: number of records of the dataset.
      seed: seed of the run.
      batch: number of samples of a step.
      repeats: how often each record occurs in its batch.
      balance: the share of each class; None is that of the dataset, each record once an epoch.

    Returns:
      uint32 record numbers of shape (n,), NumPy or JAX as `positions`.
    """
    if repeats > 1:
        different = np.uint32(batch // repeats)
        row = positions % np.uint32(batch) % different
        positions = positions // np.uint32(batch) * different + row
    if balance is not None:
        return balanced_ids(positions, balance, seed)
    return sample_ids(positions, size, seed)


def sample_ids(positions: Positions, size: int, seed: Seed) -> Any:
    """Returns a record number for each position; each epoch is a permutation of all records.

    Args:
      positions: positions of the samples.
      size: number of records of the dataset.
      seed: seed of the run.

    Returns:
      uint32 record numbers in [0, size) of shape (n,), NumPy or JAX as `positions`.

    Examples:
      >>> sorted(sample_ids(np.arange(5, 10, dtype=np.uint32), 5, seed=0).tolist())
      [0, 1, 2, 3, 4]
    """
    n = np.uint32(size)
    epoch, offset = positions // n, positions % n
    key = threefry(_seed_words(seed), (epoch, np.asarray([ORDER], np.uint32)))
    return _permuted(offset, n, np.uint32(half_bits(size)), key)


def balanced_ids(positions: Positions, balance: Balance, seed: Seed) -> Any:
    """Returns a record number for each position, where classes have given shares of each epoch.

    An epoch has exactly `balance.shares` samples of each class, in an order of its own. The samples
    of a class, over all epochs, go through its records again and again, each time in another order:
    its records therefore occur equally often, up to one.

    Args:
      positions: positions of the samples.
      balance: the records and the share of each class.
      seed: seed of the run.

    Returns:
      uint32 record numbers of shape (n,), NumPy or JAX as `positions`.

    Examples:
      >>> tables = Balance.of(np.array([0, 0, 0, 1]), power=1.0)
      >>> ids = balanced_ids(np.arange(4, dtype=np.uint32), tables, seed=0)
      >>> sorted(ids.tolist())[2:]
      [3, 3]
    """
    numbers: Any = jnp if isinstance(positions, jax.Array) else np

    def of(table: UInt32[np.ndarray, " k"], which: Any) -> Any:
        return numbers.asarray(table)[which]

    size = np.uint32(balance.shares.sum())
    place = sample_ids(positions, int(size), seed)
    label = numbers.searchsorted(numbers.asarray(balance.ends), place, side="right")
    label = label.astype(np.uint32)
    share, count = of(balance.shares, label), of(balance.counts, label)
    within = positions // size * share + place - (of(balance.ends, label) - share)
    key = threefry(_seed_words(seed), (label, np.asarray([CLASS], np.uint32)))
    key = threefry(key, (within // count, np.asarray([ORDER], np.uint32)))
    chosen = _permuted(within % count, count, of(balance.half_bits, label), key)
    return of(balance.records, of(balance.firsts, label) + chosen)


def _permuted(offset: Any, n: Any, half: Any, key: tuple[Any, Any]) -> Any:
    """Returns the places that a permutation gives to offsets.

    Args:
      offset: numbers below `n`.
      n: the size of the range, for all offsets or for each.
      half: `half_bits` of `n`.
      key: the key of the permutation, for all offsets or for each.
    """
    numbers: Any = jnp if isinstance(offset, jax.Array) else np
    mask = (np.uint32(1) << half) - np.uint32(1)

    def permuted(value: Any) -> Any:
        left, right = value >> half, value & mask
        for turn in range(ROUNDS):
            mixed, _ = threefry(key, (right, np.asarray([turn], np.uint32)))
            left, right = right, left ^ (mixed & mask)
        return (left << half) | right

    value = permuted(offset)
    if numbers is np:
        while (outside := value >= n).any():
            value = np.where(outside, permuted(value), value)
        return value
    return lax.while_loop(
        lambda v: (v >= n).any(), lambda v: jnp.where(v >= n, permuted(v), v), value
    )
