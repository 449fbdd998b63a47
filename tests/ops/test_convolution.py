"""3x3 convolutions over few pixels and 1x1 convolutions, which are products on CPU.

Their derivatives of any order are those of the usual convolutions.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxres.ops.convolution import convolution, direct, packed, pointwise_product, unpacked
from flaxres.ops.product import product

CASES = [  # shape and stride
    ((2, 8, 8, 32, 32), 1),
    ((3, 7, 5, 3, 5), 2),
    ((1, 1, 1, 128, 128), 1),
    ((3, 2, 1, 128, 129), 1),
    ((3, 2, 1, 128, 129), 2),
    ((2, 4, 3, 128, 128), 1),
    ((2, 4, 3, 128, 128), 2),
]
Function = Callable[[jax.Array, jax.Array], jax.Array]


def arrays(shape: tuple[int, ...], dtype: str = "float64") -> tuple[jax.Array, jax.Array]:
    n, height, width, channels, features = shape
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(n, height, width, channels)), dtype), jnp.asarray(
        rng.normal(size=(3, 3, channels, features)), dtype
    )


def value(function: Function) -> Function:
    return lambda x, kernel: jnp.sin(function(x, kernel)).sum()


def assert_alike_to_any_order(
    ours: Function, usual: Function, x: jax.Array, kernel: jax.Array
) -> None:
    def both(transform: Callable[[Function], Callable[..., Any]]) -> None:
        for a, b in zip(
            jax.tree.leaves(transform(value(ours))(x, kernel)),
            jax.tree.leaves(transform(value(usual))(x, kernel)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)

    both(lambda f: f)
    both(lambda f: jax.grad(f, (0, 1)))
    both(lambda f: lambda x, kernel: jax.jvp(f, (x, kernel), (x, kernel)))
    both(lambda f: lambda x, kernel: jax.jvp(jax.grad(f, (0, 1)), (x, kernel), (x, kernel)))
    both(lambda f: jax.grad(lambda x, kernel: (jax.grad(f, 1)(x, kernel) ** 2).sum(), (0, 1)))
    both(lambda f: lambda x, kernel: jax.vmap(jax.grad(f, 1), (0, None))(x[:, None], kernel))


@pytest.mark.parametrize(("shape", "stride"), CASES)
def test_it_is_the_convolution_to_any_order(shape: tuple[int, ...], stride: int) -> None:
    with jax.enable_x64(True):
        assert_alike_to_any_order(
            functools.partial(convolution, stride=stride),
            functools.partial(direct, stride=stride),
            *arrays(shape),
        )


@pytest.mark.parametrize("size", [3, 7])
@pytest.mark.parametrize("shape", [(2, 16, 16, 3), (1, 13, 10, 3), (2, 9, 8, 1), (1, 7, 7, 4)])
def test_a_packed_stem_is_the_convolution_to_any_order(shape: tuple[int, ...], size: int) -> None:
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel = jnp.asarray(rng.normal(size=shape)), rng.normal(size=(size, size, shape[3], 5))
        assert_alike_to_any_order(packed, unpacked, x, jnp.asarray(kernel))


@pytest.mark.parametrize("platform", ["cuda", "cpu", "tpu"])
def test_only_gpus_pack_a_stem(platform: str) -> None:
    def stem(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolution(x, kernel, 2)

    text = lowered(stem, jnp.zeros((2, 32, 32, 3)), jnp.zeros((7, 7, 3, 8)), platform)
    assert ("tensor<4x4x16x8xf32>" in text) == (platform == "cuda")


@pytest.mark.parametrize("channels", [3, 130])
def test_the_product_is_one_to_any_order(channels: int) -> None:
    with jax.enable_x64(True):
        x, kernel = arrays((2, 3, 4, channels, 5))
        assert_alike_to_any_order(
            product, lambda x, kernel: jnp.einsum("nhwc,ck->nhwk", x, kernel), x, kernel[0, 0]
        )


def lowered(function: Function, x: jax.Array, kernel: jax.Array, platform: str) -> str:
    text: str = jax.jit(function).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    return text


@pytest.mark.parametrize(
    ("shape", "stride", "dtype", "on_cpu"),
    [
        ((2, 2, 2, 128, 128), 1, "float32", 0),
        ((2, 4, 4, 128, 128), 2, "float32", 1),
        ((2, 2, 2, 64, 64), 1, "float32", 2),
        ((2, 2, 2, 128, 128), 1, "bfloat16", 2),
    ],
)
def test_few_pixels_are_products_on_cpu(
    shape: tuple[int, ...], stride: int, dtype: str, on_cpu: int
) -> None:
    both: Any = jax.value_and_grad(value(functools.partial(convolution, stride=stride)))
    for platform, convolutions in (("cpu", on_cpu), ("cuda", 2), ("tpu", 2)):
        assert (
            lowered(both, *arrays(shape, dtype), platform).count("stablehlo.convolution")
            == convolutions
        ), platform


@pytest.mark.parametrize("size", [1, 3])
def test_the_gradient_is_kept_on_cpu_and_the_value_is_not_copied(size: int) -> None:
    x, kernel = arrays((2, 8, 8, 32, 32), "float32")
    forward: Function = functools.partial(convolution, stride=1)
    if size == 1:
        kernel, forward = kernel[:1, :1], functools.partial(pointwise_product, stride=1)
    for platform, kept in (("cpu", 1), ("cuda", 0), ("tpu", 0)):
        assert lowered(forward, x, kernel, platform).count("stablehlo.minimum") == 0
        assert (
            lowered(jax.grad(value(forward)), x, kernel, platform).count("stablehlo.minimum")
            == kept
        ), platform
