"""A convolution with all that follows it equals the same by JAX's operations."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxres.ops import native
from flaxres.ops.fused import fused_convolution, packed, padded, plain, unpacked
from tests.ops.native_cases import CASES, arrays, calls, needs_compiler

pytestmark = needs_compiler


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "size", "stride"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (i % 3 > 0))
        for i, case in enumerate([*CASES, ((7, 7, 7, 33, 48), 3, 1), ((1, 6, 5, 9, 24), 1, 1)])
    ],
)
def test_it_is_the_convolution_and_what_follows(
    shape: tuple[int, ...], size: int, stride: int, dtype: str
) -> None:
    native.use_native_convolutions()
    if not native.computes(dtype, "inference"):
        pytest.skip(f"this processor doesn't multiply {dtype}")
    x, kernel = (array.astype(dtype) for array in arrays(shape, size))
    rng, features = np.random.default_rng(1), shape[-1]
    rows = [jnp.asarray(padded(rng.normal(size=features))) for _ in range(2)]
    blocks = jnp.asarray(packed(np.asarray(kernel)))
    assert (unpacked(blocks, size, shape[3], features) == kernel).all()
    extent = (-(-side // stride) for side in shape[1:3])
    shortcut = jnp.asarray(rng.normal(size=(shape[0], *extent, features)), dtype)
    for added, relu in ((shortcut, True), (None, False)):
        settings: dict[str, Any] = {"features": features, "size": size, "stride": stride}
        settings["relu"] = relu
        ours = functools.partial(fused_convolution, shortcut=added, **settings)
        assert calls(ours, x, blocks, *rows) == 1
        wide = [array.astype(jnp.float32) for array in (x, blocks)]
        others = () if added is None else (added.astype(jnp.float32),)
        expected = by_numbers(wide[0], kernel.astype(jnp.float32), *rows, *others, **settings)
        y = jax.jit(ours)(x, blocks, *rows)
        assert y.dtype == dtype
        largest = float(np.abs(expected).max())
        step = 2**-8 if dtype == "bfloat16" else 0.0
        np.testing.assert_allclose(y.astype(np.float32), expected, rtol=step, atol=2e-6 * largest)


@pytest.mark.parametrize(
    ("shape", "size", "stride"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (i % 3 > 0))
        for i, case in enumerate([*CASES, ((7, 7, 7, 33, 48), 3, 1), ((1, 6, 5, 9, 24), 1, 1)])
    ],
)
def test_sums_of_8_bit_images_are_whole(shape: tuple[int, ...], size: int, stride: int) -> None:
    native.use_native_convolutions()
    if not native.computes("uint8", "inference"):
        pytest.skip("this processor doesn't multiply 8-bit numbers")
    rng, (count, height, width, channels, features) = np.random.default_rng(0), shape
    x = rng.integers(0, 256, (count, height, width, channels), np.uint8)
    kernel = rng.integers(-127, 128, (size, size, channels, features), np.int8)
    extent = (count, -(-height // stride), -(-width // stride), features)
    rows = [
        jnp.asarray(padded(values))
        for values in (rng.uniform(1e-4, 1e-3, features), rng.normal(size=features) * 50)
    ]
    blocks = jnp.asarray(packed(kernel))
    shortcuts = (rng.integers(0, 256, extent, np.uint8), rng.normal(size=extent), None)
    for shortcut, dtype in itertools.product(shortcuts, ("uint8", "float32")):
        settings: dict[str, Any] = {"features": features, "size": size, "stride": stride}
        settings |= {"relu": True, "dtype": dtype, "shortcut_factor": 0.25}
        given = () if shortcut is None else (jnp.asarray(shortcut),)
        ours = functools.partial(fused_convolution, **settings)
        assert calls(ours, x, blocks, *rows, *given) == 1
        y = jax.jit(ours)(x, blocks, *rows, *given)
        exact = by_numbers(x, kernel, *rows, *(g * 0.25 for g in given), **settings)
        if dtype == "uint8":
            assert np.abs(y - np.clip(exact, 0, 255)).max() < 0.501
        else:
            np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-4)
        usual = plain(x, blocks, *rows, *given, **settings | {"dtype": jnp.dtype(dtype)})
        apart = np.abs(np.asarray(y, float) - np.asarray(usual, float)).max()
        assert apart <= (1 if dtype == "uint8" else 1e-3)


def by_numbers(
    x: jax.Array,
    kernel: jax.Array,
    factor: jax.Array,
    summand: jax.Array,
    *shortcut: jax.Array,
    features: int,
    size: int,
    stride: int,
    relu: bool,
    **others: Any,
) -> np.ndarray:
    """Computes it in float64 from the convolution in float32, or of whole numbers."""
    if x.dtype == np.uint8:
        x, kernel = jnp.asarray(x, jnp.int32), jnp.asarray(kernel, jnp.int32)
    y = jax.lax.conv_general_dilated(
        x, kernel, (stride,) * 2, [(size // 2,) * 2] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    exact = np.asarray(y, np.float64) * factor[:features] + summand[:features]
    exact = sum((np.asarray(other, np.float64) for other in shortcut), exact)
    return np.maximum(exact, 0) if relu else exact


def test_without_native_calls_it_is_the_same() -> None:
    """As in an export, or under `jax.vmap`."""
    native.use_native_convolutions()
    x, kernel = arrays((3, 9, 7, 5, 32), 3)
    factor = jnp.asarray(padded(np.random.default_rng(0).normal(size=32)))
    blocks = jnp.asarray(packed(np.asarray(kernel)))
    settings: dict[str, Any] = {"features": 32, "size": 3, "stride": 2, "relu": True}
    y = fused_convolution(x, blocks, factor, factor, **settings)
    usual = plain(
        x, blocks, factor, factor, **settings, dtype=jnp.dtype("float32"), shortcut_factor=1.0
    )
    np.testing.assert_allclose(y, usual, atol=1e-5)
    ours = functools.partial(fused_convolution, **settings)
    mapped = jax.vmap(ours, (0, None, None, None))(x[:, None], blocks, factor, factor)[:, 0]
    np.testing.assert_allclose(y, mapped, atol=1e-5)
    assert calls(ours, x, blocks, factor, factor, platform="tpu") == 0


def test_nan_and_no_images_pass() -> None:
    native.use_native_convolutions()
    x, kernel = arrays((2, 4, 4, 8, 16), 3)
    ones, blocks = jnp.ones(16), jnp.asarray(packed(np.asarray(kernel)))
    ours = functools.partial(
        fused_convolution, shortcut=None, features=16, size=3, stride=1, relu=True
    )
    y = ours(x.at[0, 0, 0, 0].set(jnp.nan), blocks, ones, ones)
    assert jnp.isnan(y[0, 0, 0]).all()
    assert not jnp.isnan(y[1]).any()
    assert ours(x[:0], blocks, ones, ones).shape == (0, 4, 4, 16)
