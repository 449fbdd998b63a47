"""Max pooling against XLA's own."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from flaxres.ops import native
from flaxres.ops.kept import jax_operations_only
from flaxres.ops.pool import max_pool, maximum_of_lines, maximum_of_places
from tests.ops.native_cases import calls, needs_compiler

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


@pytest.mark.parametrize(
    ("size", "stride", "padding", "shape"),
    [
        (3, 2, 1, (12, 12)),
        (3, 2, 1, (11, 13)),
        (2, 2, 0, (9, 8)),
        (3, 1, 1, (7, 6)),
        (3, 2, 0, (9, 10)),
        (2, 1, 0, (5, 5)),
        (3, 3, 1, (10, 11)),
        (5, 2, 2, (11, 12)),
    ],
)
@pytest.mark.parametrize("converted", [False, True])
def test_the_form_of_gpus_is_that_of_cpus_to_any_order(
    size: int, stride: int, padding: int, shape: tuple[int, int], converted: bool
) -> None:
    def cubed(form: Any) -> Callable[[jax.Array], jax.Array]:
        return lambda x: (form(size, stride, padding, x) ** 3).sum()

    rng = np.random.default_rng(0)
    with (
        jax.enable_x64(True),
        jax_operations_only() if converted else contextlib.nullcontext(),
    ):
        x = jnp.asarray(rng.integers(0, 5, (2, *shape, 3)), jnp.float64)  # many ties
        change = jnp.asarray(rng.normal(size=x.shape))

        def alike(transform: Callable[[Callable[[jax.Array], jax.Array]], jax.Array]) -> None:
            ours, usual = (transform(cubed(form)) for form in (maximum_of_places, maximum_of_lines))
            np.testing.assert_allclose(ours, usual, rtol=1e-12)

        alike(lambda f: f(x))
        alike(lambda f: jax.grad(f)(x))
        alike(lambda f: jax.jvp(f, (x,), (change,))[1])
        alike(lambda f: jax.jvp(jax.grad(f), (x,), (change,))[1])
        alike(lambda f: jax.grad(lambda x: (jax.grad(f)(x) * change).sum())(x))
        alike(lambda f: jax.vmap(jax.grad(f))(jnp.stack([x, x + change])))


def test_windows_outside_an_image_get_no_gradient() -> None:
    """Each value goes to exactly one pixel, so the gradient's sum is the number of windows."""
    for size, stride, padding, side in ((3, 2, 1, 7), (2, 2, 0, 7), (5, 3, 2, 11)):
        pool = functools.partial(maximum_of_places, size, stride, padding)
        x = jax.random.normal(jax.random.key(size), (2, side, side, 1))
        assert jax.grad(lambda x, pool=pool: pool(x).sum())(x).sum() == pool(x).size


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "size", "stride", "padding"),
    [
        ((2, 9, 8, 5), 3, 2, 1),
        ((1, 12, 13, 64), 3, 2, 1),
        ((2, 8, 8, 24), 2, 2, 0),
        ((1, 7, 7, 16), 3, 1, 1),
        ((1, 6, 6, 40), 5, 2, 2),
    ],
)
def test_native_code_pools_the_same(
    shape: tuple[int, ...], size: int, stride: int, padding: int, dtype: str
) -> None:
    """Whole numbers have ties, and sums without rounding: both forms agree to the bit."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-3, 4, shape), dtype)

    def pool(x: jax.Array) -> jax.Array:
        return max_pool(x, size, stride, padding)

    def results() -> Any:
        y, back = jax.vjp(pool, x)
        change = jnp.asarray(np.random.default_rng(1).integers(-3, 4, y.shape), dtype)
        second = jax.grad(lambda x: (jax.grad(lambda x: (pool(x) ** 2).sum())(x) ** 2).sum())
        return y, back(change), second(x)

    expected = results()
    native.use_native_convolutions()
    if not native.computes(dtype):
        pytest.skip("not on this processor")
    jax.clear_caches()
    assert calls(jax.grad(lambda x: pool(x).sum()), x) == 2
    for mine, theirs in zip(jax.tree.leaves(results()), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@needs_compiler
def test_native_code_keeps_nan_and_the_least_number() -> None:
    native.use_native_convolutions()
    x = jnp.full((1, 4, 4, 16), -jnp.inf).at[0, 1, 1, 3].set(jnp.nan)
    pooled = max_pool(x)
    assert np.isnan(pooled[0, :, :, 3]).all()
    assert np.isneginf(np.delete(pooled, 3, -1)).all()
