"""The gradients of 3x3 convolutions by products, and of 1x1, are the usual ones, to any order, and only CPUs get them."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxres.models import convolution as module
from flaxres.models.convolution import convolution, direct, product

SHAPES = [(2, 8, 8, 32, 32), (3, 7, 5, 33, 40), (1, 1, 1, 16, 32), (2, 6, 9, 64, 16), (3, 2, 1, 128, 129), (2, 4, 3, 128, 128)]
Function = Callable[[jax.Array, jax.Array], jax.Array]


def arrays(shape: tuple[int, ...], dtype: str = "float64") -> tuple[jax.Array, jax.Array]:
    n, height, width, channels, features = shape
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(n, height, width, channels)), dtype), jnp.asarray(rng.normal(size=(3, 3, channels, features)), dtype)


def value(function: Function) -> Function:
    return lambda x, kernel: jnp.sin(function(x, kernel)).sum()


def assert_alike_to_any_order(ours: Function, usual: Function, x: jax.Array, kernel: jax.Array) -> None:
    def both(transform: Callable[[Function], Function]) -> None:
        for a, b in zip(jax.tree.leaves(transform(value(ours))(x, kernel)), jax.tree.leaves(transform(value(usual))(x, kernel)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)

    both(lambda f: f)
    both(lambda f: jax.grad(f, (0, 1)))  # type: ignore[arg-type]
    both(lambda f: lambda x, kernel: jax.jvp(f, (x, kernel), (x, kernel)))  # type: ignore[arg-type, return-value]
    both(lambda f: lambda x, kernel: jax.jvp(jax.grad(f, (0, 1)), (x, kernel), (x, kernel)))  # type: ignore[arg-type, return-value]
    both(lambda f: jax.grad(lambda x, kernel: (jax.grad(f, 1)(x, kernel) ** 2).sum(), (0, 1)))  # type: ignore[arg-type]
    both(lambda f: lambda x, kernel: jax.vmap(jax.grad(f, 1), (0, None))(x[:, None], kernel))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_convolution_to_any_order(shape: tuple[int, ...], stride: int) -> None:
    with jax.enable_x64(True):
        assert_alike_to_any_order(functools.partial(convolution, stride=stride), functools.partial(direct, stride=stride), *arrays(shape))


@pytest.mark.parametrize("channels", [3, 130])
def test_the_product_is_one_to_any_order(channels: int) -> None:
    with jax.enable_x64(True):
        x, kernel = arrays((2, 3, 4, channels, 5))
        assert_alike_to_any_order(product, lambda x, kernel: jnp.einsum("nhwc,ck->nhwk", x, kernel), x, kernel[0, 0])


def test_it_loses_no_more_in_float32_than_the_usual_gradient() -> None:
    shape = (64, 16, 16, 32, 32)
    with jax.enable_x64(True):
        exact = np.asarray(jax.grad(value(functools.partial(direct, stride=1)), 1)(*arrays(shape)))
    off = []
    for function in (convolution, direct):
        found = np.asarray(jax.grad(value(functools.partial(function, stride=1)), 1)(*arrays(shape, "float32")))
        off.append(abs(found - exact).max() / abs(exact).max())
    assert off[0] < max(2 * off[1], 1e-6)


@pytest.mark.parametrize(("platform", "products"), [("cpu", 16), ("cuda", 0), ("tpu", 0)])
def test_only_cpus_get_products(platform: str, products: int) -> None:
    x, kernel = arrays((2, 8, 8, 32, 32), "float32")
    gradient = jax.jit(jax.grad(value(functools.partial(convolution, stride=1)), 1))
    text = gradient.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    over_tiles = sum("contracting_dims = [0] x [0]" in line and "(tensor<32x32xf32>, tensor<32x32xf32>)" in line for line in text.splitlines())
    assert over_tiles == products
    assert text.count("stablehlo.convolution") == (1 if products else 2)


def test_few_pixels_are_products_on_cpu() -> None:
    for shape, stride, convolutions in (((2, 2, 2, 128, 128), 1, 0), ((2, 2, 2, 64, 64), 1, 2), ((2, 4, 4, 128, 128), 2, 1)):
        x, kernel = arrays(shape, "float32")
        both = jax.jit(jax.value_and_grad(value(functools.partial(convolution, stride=stride))))
        for platform, expected in (("cpu", convolutions), ("cuda", 2), ("tpu", 2)):
            text = both.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
            assert text.count("stablehlo.convolution") == expected, (shape, platform)


def test_narrow_and_half_precision_convolutions_keep_their_gradient() -> None:
    for channels, dtype, pays in ((16, "float32", False), (32, "float32", True), (32, "bfloat16", False)):
        array = jax.ShapeDtypeStruct((1, 8, 8, channels), dtype)
        assert module.products_pay(array, array) is pays  # type: ignore[arg-type]
