"""The order of samples: published vectors, permutations, and equality of NumPy and JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32

from flaxres.data.order import mirrored, sample_ids, threefry, uniforms


def words(*values: int) -> np.ndarray:
    return np.asarray(values, np.uint32)


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [  # Random123's test vectors of threefry2x32 with 20 rounds
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_the_published_answers(
    key: tuple[int, int], counter: tuple[int, int], expected: tuple[int, int]
) -> None:
    a, b = threefry((words(key[0]), words(key[1])), (words(counter[0]), words(counter[1])))
    assert (int(a[0]), int(b[0])) == expected


def test_threefry_is_jaxs() -> None:
    ours = np.concatenate(
        threefry(
            (words(3), words(7)), (np.arange(5, dtype=np.uint32), np.arange(5, 10, dtype=np.uint32))
        )
    )
    np.testing.assert_array_equal(
        ours, threefry_2x32(jnp.array([3, 7], jnp.uint32), jnp.arange(10, dtype=jnp.uint32))
    )


@pytest.mark.parametrize("size", [1, 2, 3, 7, 250, 1297, 65536, 65537])
def test_each_epoch_is_a_permutation_and_the_device_agrees(size: int) -> None:
    positions = np.arange(2 * size, dtype=np.uint32)
    ids = sample_ids(positions, size, seed=5)
    for epoch in (ids[:size], ids[size:]):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(size))
    np.testing.assert_array_equal(jax.jit(lambda p: sample_ids(p, size, 5))(positions), ids)
    if size > 200:
        assert (ids[:size] != ids[size:]).mean() > 0.9
        assert (ids != sample_ids(positions, size, seed=6)).mean() > 0.9
        assert abs(np.corrcoef(ids[:size], positions[:size])[0, 1]) < 0.2


def test_each_record_is_mirrored_in_every_second_epoch() -> None:
    positions = np.arange(3 * 1297, dtype=np.uint32)
    which = mirrored(positions, 1297, 5)
    ids = sample_ids(positions, 1297, 5)
    first, second, third = (
        which[part][np.argsort(ids[part])] for part in np.split(np.arange(3 * 1297), 3)
    )
    np.testing.assert_array_equal(second, ~first)
    np.testing.assert_array_equal(third, first)
    assert 0.4 < first.mean() < 0.6
    assert (mirrored(positions, 1297, 6) != which).any()
    np.testing.assert_array_equal(jax.jit(lambda p: mirrored(p, 1297, 5))(positions), which)


def test_any_position_is_had_without_the_ones_before() -> None:
    positions = np.asarray([4_000_000_000, 17, 1_300_000], np.uint32)
    alone = [int(sample_ids(positions[i : i + 1], 1_281_167, 0)[0]) for i in range(3)]
    assert sample_ids(positions, 1_281_167, 0).tolist() == alone


@pytest.mark.parametrize("place", [0, 3, 9])
def test_each_place_in_many_epochs_is_uniform(place: int) -> None:
    counts = np.bincount(
        sample_ids(np.arange(place, 10 * 20_000, 10, dtype=np.uint32), 10, 0), minlength=10
    )
    assert (
        (counts - 2000) ** 2 / 2000
    ).sum() < 27.9  # chi squared, 9 degrees of freedom, p = 0.001


def test_uniforms_belong_to_the_sample() -> None:
    numbers = uniforms(0, np.arange(500), (10, 4))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.01
    assert len(np.unique(numbers)) > 0.999 * numbers.size
    np.testing.assert_array_equal(uniforms(0, np.asarray([7]), (10, 4))[0], numbers[7])
    assert (uniforms(1, np.asarray([7]), (10, 4))[0] != numbers[7]).all()
