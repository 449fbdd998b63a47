"""Max pooling against XLA's own."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from flaxres.ops.kept import jax_operations_only
from flaxres.ops.pool import max_pool

SHAPES = ((2, 8, 8, 3), (1, 7, 9, 2), (2, 112, 112, 4))


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize(
    ("shape", "size", "padding", "tolerance"),
    [
        *((shape, size, size // 3, 1e-6) for shape in SHAPES for size in (3, 2)),
        # More places than 8 bits can number; tracing its 289 slices takes a minute.
        pytest.param(SHAPES[1], 17, 8, 1e-5, marks=pytest.mark.slow),
    ],
)
def test_max_pool_and_its_gradient_are_xlas(
    shape: tuple[int, ...], size: int, padding: int, tolerance: float, elsewhere: bool
) -> None:
    def ours(x: jax.Array) -> jax.Array:
        # GPUs have the form that converters get.
        with jax_operations_only() if elsewhere else contextlib.nullcontext():
            return max_pool(x, size, 2, padding)

    def reference(x: jax.Array) -> jax.Array:
        return lax.reduce_window(
            x,
            -jnp.inf,
            lax.max,
            (1, size, size, 1),
            (1, 2, 2, 1),
            ((0, 0), (padding, padding), (padding, padding), (0, 0)),
        )

    x = jax.random.normal(jax.random.key(0), shape)
    np.testing.assert_array_equal(ours(x), reference(x))
    weights = jax.random.normal(jax.random.key(1), reference(x).shape)
    for values in (x, jnp.round(x)):  # the second has ties, which go to the first maximum
        gradient, expected = (
            jax.grad(lambda x, pool=pool: (pool(x) * weights).sum())(values)
            for pool in (ours, reference)
        )
        np.testing.assert_allclose(gradient, expected, atol=tolerance)
