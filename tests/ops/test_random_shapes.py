"""Native code at random shapes against float64, for `python -m tools.sanitized` as well.

FLAXRES_RANDOM_SHAPES is the number of shapes of each operation.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxres.ops import native
from flaxres.ops.batch_norm import batch_norm, pixels, plain_moments, plain_norm
from flaxres.ops.convolution import NATIVE_CHANNELS, convolution, unpacked
from flaxres.ops.fused import fused_convolution, packed, padded
from flaxres.ops.kept import jax_operations_only
from flaxres.ops.pool import max_pool
from tests.ops.native_cases import calls, needs_compiler

pytestmark = [needs_compiler, pytest.mark.slow]
SHAPES = range(int(os.environ.get("FLAXRES_RANDOM_SHAPES", "2")))
MOST_PRODUCTS = 1e7


@pytest.fixture(autouse=True)
def compiled() -> None:
    """Loads all native code, whose functions a sanitizer can name in its first report only then."""
    native.use_native_convolutions()
    for dtype in ("float32", "bfloat16", "uint8"):
        native.computes(dtype, "inference")
    native.computes("bfloat16")


def number(rng: np.random.Generator, least: int, most: int) -> int:
    """Returns a random whole number, whose logarithm is uniform."""
    return int(np.exp(rng.uniform(np.log(least), np.log(most + 1))))


def images(rng: np.random.Generator, large: bool) -> tuple[int, int, int, int]:
    """Returns a random shape of images: count, height, width and channels.

    A large one is several parts of work for the threads of XLA's pool.
    """
    count, side, channels = (10, 12, 24) if large else (1, 1, 1)
    return (
        *(number(rng, count, 20), number(rng, side, 24), number(rng, side, 24)),
        number(rng, channels, 150),
    )


def window(
    rng: np.random.Generator, large: bool
) -> tuple[tuple[int, int, int, int], tuple[int, ...], int]:
    """Returns random shapes of images and of a kernel, and a stride."""
    while True:
        shape, size = images(rng, large), int(rng.choice([1, 3, 3, 5, 7]))
        kernel = (size, size, shape[3], number(rng, NATIVE_CHANNELS, 150))
        if np.prod(shape) * np.prod(kernel) / shape[3] < MOST_PRODUCTS * (10 if large else 1):
            return shape, kernel, int(rng.integers(1, 3))


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(0.3, 1, shape)


def loss(function: Callable[..., Any]) -> Callable[..., jax.Array]:
    """Returns a function whose derivatives of every order depend on all results."""

    def total(*given: jax.Array) -> jax.Array:
        leaves = jax.tree.leaves(function(*given))
        return sum(jnp.sin(leaf).sum() for leaf in leaves)  # type: ignore[return-value]

    return total


def derivatives(function: Callable[..., jax.Array], count: int) -> list[Callable[..., Any]]:
    """Returns the function, its gradients, their tangents, and the gradients of their squares."""
    gradient = jax.grad(function, tuple(range(count)))
    slope = lambda *given: sum((g**2).sum() for g in gradient(*given))  # noqa: E731
    return [
        function,
        gradient,
        lambda *given: jax.jvp(gradient, given, given)[1],
        jax.grad(slope, tuple(range(count))),
    ]


def assert_near(ours: Any, exact: Any, tolerance: float) -> None:
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        wide = np.asarray(a, np.float64), np.asarray(b, np.float64)
        largest = max(float(np.abs(wide[1]).max()), 1e-3) if wide[1].size else 1.0
        np.testing.assert_allclose(*wide, atol=tolerance * largest, rtol=0)


def compare(ours: Callable[..., Any], exact: Callable[..., Any], arrays: Sequence[Any]) -> None:
    """Compares derivatives of every order in float32 with those in float64."""
    narrow = [jnp.asarray(array, jnp.float32) for array in arrays]
    count = len(arrays)
    for order, (mine, theirs) in enumerate(
        zip(derivatives(ours, count), derivatives(exact, count), strict=True)
    ):
        result = jax.jit(mine)(*narrow)
        with jax.enable_x64(True), jax_operations_only():
            wide = [jnp.asarray(array, jnp.float64) for array in narrow]
            expected = jax.jit(theirs)(*wide)
        assert_near(result, expected, 3e-5 if order < 2 else 1e-3)


@pytest.mark.parametrize("seed", SHAPES)
def test_convolutions(seed: int) -> None:
    rng = np.random.default_rng([1, seed])
    shape, kernel, stride = window(rng, large=seed % 2 == 1)
    x, weights = normal(rng, *shape), normal(rng, *kernel) / kernel[0] / shape[3] ** 0.5
    ours = functools.partial(convolution, stride=stride)
    assert calls(ours, jnp.float32(x), jnp.float32(weights)) == 1, (shape, kernel, stride)
    compare(loss(ours), loss(functools.partial(unpacked, stride=stride)), (x, weights))


@pytest.mark.parametrize("seed", SHAPES)
def test_convolutions_in_bfloat16(seed: int) -> None:
    if not native.computes("bfloat16"):
        pytest.skip("this processor doesn't multiply bfloat16")
    rng = np.random.default_rng([2, seed])
    shape, kernel, stride = window(rng, large=seed % 2 == 1)
    x, weights = (jnp.asarray(normal(rng, *extent), jnp.bfloat16) for extent in (shape, kernel))
    y, back = jax.vjp(functools.partial(convolution, stride=stride), x, weights)
    change = jnp.asarray(normal(rng, *y.shape), jnp.bfloat16)
    with jax.enable_x64(True):
        wide = [array.astype(jnp.float64) for array in (x, weights)]
        exact, wide_back = jax.vjp(functools.partial(unpacked, stride=stride), *wide)
        expected = exact, *wide_back(change.astype(jnp.float64))
    assert_near((y, *back(change)), expected, 2**-8)


@pytest.mark.parametrize("seed", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_norms(seed: int, dtype: str) -> None:
    if not native.computes(dtype):
        pytest.skip("this processor doesn't round to bfloat16")
    rng = np.random.default_rng([3, seed])
    count, *rest = images(rng, large=seed % 2 == 1)
    shape, relu = (number(rng, 1, 3), count + 1, *rest), bool(rng.integers(2))
    added = relu and bool(rng.integers(2))
    x, shortcut = (np.asarray(jnp.asarray(normal(rng, *shape), dtype)) for _ in range(2))
    scale, bias = normal(rng, shape[4]), normal(rng, shape[4])
    given = (x, scale, bias, *([shortcut] if added else []))

    def ours(x: jax.Array, scale: jax.Array, bias: jax.Array, *shortcut: jax.Array) -> Any:
        shift = jnp.full(scale.shape, 0.25, scale.dtype)
        return batch_norm(1e-3, relu, x, shift, scale, bias, *shortcut)

    def exact(x: jax.Array, scale: jax.Array, bias: jax.Array, *shortcut: jax.Array) -> Any:
        shift = jnp.full(scale.shape, 0.25, scale.dtype)
        operands = x, plain_moments(x, shift), shift, scale, bias, *shortcut
        return plain_norm(*operands, epsilon=1e-3, relu=relu, count=pixels(x))

    assert calls(ours, *(jnp.asarray(array, dtype) for array in given[:1]), *rows(given[1:])) == 2
    if dtype == "float32":
        compare(loss(ours), loss(exact), given)
        return
    narrow = [jnp.asarray(x), *rows(given[1:3]), *map(jnp.asarray, given[3:])]
    y, back = jax.vjp(lambda *arrays: ours(*arrays)[0], *narrow)
    change = jnp.asarray(normal(rng, *shape), jnp.bfloat16)
    with jax.enable_x64(True):
        wide = [array.astype(jnp.float64) for array in narrow]
        theirs, wide_back = jax.vjp(lambda *arrays: exact(*arrays)[0], *wide)
        expected = theirs, *wide_back(change.astype(jnp.float64))
    mine = y, *back(change)
    # A ReLU's gate may turn where the norm is rounding alone; one pixel of a sum then differs.
    for a, b in zip(mine, expected, strict=True):
        apart = np.abs(np.asarray(a, np.float64) - np.asarray(b))
        assert (apart > 2**-6 * max(np.abs(b).max(), 1)).mean() < 1e-3


def rows(arrays: Sequence[Any]) -> list[jax.Array]:
    return [jnp.asarray(array, jnp.float32) for array in arrays]


@pytest.mark.parametrize("seed", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pools(seed: int, dtype: str) -> None:
    """Whole numbers have ties, and no sum rounds, so that results agree to the bit."""
    if not native.computes(dtype):
        pytest.skip("not on this processor")
    rng = np.random.default_rng([4, seed])
    size = number(rng, 2, 5)
    padding, stride = int(rng.integers(0, size)), int(rng.integers(1, 4))
    shape = images(rng, large=seed % 2 == 1)
    shape = shape[0], shape[1] + size, shape[2] + size, shape[3]
    x = jnp.asarray(rng.integers(-3, 4, shape), dtype)

    def results(x: jax.Array) -> Any:
        y, back = jax.vjp(lambda x: max_pool(x, size, stride, padding), x)
        return y, back(jnp.round(y / 2))

    assert calls(results, x) == 2
    ours = jax.jit(results)(x)
    with jax_operations_only():
        expected = jax.jit(lambda x: results(x))(x)
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("seed", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])
def test_fused_convolutions(seed: int, dtype: str) -> None:
    if not native.computes(dtype, "inference"):
        pytest.skip(f"this processor doesn't multiply {dtype}")
    rng = np.random.default_rng([5, seed])
    shape, kernel, stride = window(rng, large=seed % 2 == 1)
    features, whole = kernel[3], dtype == "uint8"
    x: Any = rng.integers(0, 256, shape) if whole else normal(rng, *shape)
    weights: Any = rng.integers(-127, 128, kernel) if whole else normal(rng, *kernel)
    x, weights = jnp.asarray(x, dtype), np.asarray(weights, "int8" if whole else jnp.dtype(dtype))
    factor, summand = (padded(normal(rng, features) / (100 if whole else 1)) for _ in range(2))
    extent = (shape[0], -(-shape[1] // stride), -(-shape[2] // stride), features)
    added = [jnp.asarray(normal(rng, *extent), "float32" if whole else dtype)]
    settings: dict[str, Any] = {"features": features, "size": kernel[0], "stride": stride}
    settings |= {"relu": bool(rng.integers(2)), "dtype": dtype}
    if whole and rng.integers(2):
        settings["dtype"] = "float32"
    blocks = jnp.asarray(packed(weights))
    given = x, blocks, factor, summand, *added[: int(rng.integers(2))]
    ours = functools.partial(fused_convolution, **settings)
    assert calls(ours, *given) == 1
    y = jax.jit(ours)(*given)
    with jax.enable_x64(True):
        wide = [jnp.asarray(array, jnp.float64) for array in (x, weights, *given[2:])]
        exact = unpacked(*wide[:2], stride) * wide[2][:features] + wide[3][:features]
        exact = sum(wide[4:], exact)
        exact = jnp.maximum(exact, 0) if settings["relu"] else exact
    if y.dtype == jnp.uint8:
        assert np.abs(np.asarray(y, float) - np.clip(exact, 0, 255)).max() < 0.501
    else:
        assert_near(y, exact, 2**-8 if dtype == "bfloat16" else 1e-5)
