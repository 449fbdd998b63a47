"""Shapes and comparisons for the tests of native code."""

import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxres.ops import native

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, native.COMPILERS)), reason="no C++ compiler"
)

# (N, H, W, C, K), size of the kernel, stride. There are rows longer and shorter than a tile's,
# whole and cut blocks, one and many images, few and many pixels, and kernels of over 2^18 floats.
CASES = [
    ((2, 33, 20, 16, 16), 3, 1),
    ((3, 9, 7, 5, 32), 3, 2),
    ((2, 18, 17, 20, 48), 3, 1),
    ((40, 4, 5, 32, 64), 3, 1),
    ((20, 3, 2, 32, 16), 3, 2),
    ((17, 1, 1, 16, 32), 3, 1),
    ((1, 40, 40, 48, 160), 3, 2),
    ((9, 16, 16, 64, 64), 3, 1),
    ((2, 17, 19, 3, 64), 7, 2),
    ((3, 8, 19, 16, 16), 5, 1),
    ((2, 18, 17, 32, 64), 1, 2),
    ((5, 8, 8, 96, 80), 1, 1),
    ((2, 19, 17, 24, 40), 3, 1),
    ((18, 6, 6, 13, 21), 3, 2),
    ((17, 4, 4, 160, 200), 3, 2),
    ((3, 9, 9, 512, 520), 1, 2),
]
Function = Callable[[jax.Array, jax.Array], Any]


def arrays(shape: tuple[int, ...], size: int) -> tuple[jax.Array, jax.Array]:
    n, height, width, channels, features = shape
    rng = np.random.default_rng(0)
    x, kernel = (
        rng.normal(size=(n, height, width, channels)),
        rng.normal(size=(size, size, channels, features)) / size / channels**0.5,
    )
    return jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)


def value(
    function: Callable[..., jax.Array], stride: int
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return lambda x, kernel: jnp.sin(function(x, kernel, stride)).sum()


def assert_alike(ours: Any, usual: Any) -> None:
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(usual), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.abs(b).max()))


def calls(function: Function, *arguments: Any, platform: str = "cpu") -> int:
    return int(
        jax.jit(function)
        .trace(*arguments)
        .lower(lowering_platforms=(platform,))
        .as_text()
        .count("custom_call @flaxres")
    )
