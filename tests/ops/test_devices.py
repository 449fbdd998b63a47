"""Native calls in programs for several CPU devices, each of which computes its images."""

import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from flaxres.ops import devices, native
from flaxres.ops.convolution import convolution
from flaxres.ops.pool import max_pool
from tests.ops.native_cases import calls, needs_compiler

pytestmark = needs_compiler
COUNT = 4


def mesh() -> Mesh:
    return Mesh(np.array(jax.devices()[:COUNT]), ("data",), axis_types=(AxisType.Auto,))


def dividing(function: Callable[..., Any]) -> Callable[..., Any]:
    return devices.dividing(function, mesh())


def random(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def convolved(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return convolution(x, kernel, 2)


def pooled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return max_pool(x) * (1 + kernel.mean())


@pytest.mark.parametrize(("function", "fewest"), [(convolved, 3), (pooled, 2)])
def test_a_gradient_is_that_of_one_device(function: Any, fewest: int) -> None:
    native.use_native_convolutions()
    x, kernel = random(2 * COUNT, 9, 8, 16), random(3, 3, 16, 32)

    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sin(function(x, kernel)).sum()

    def slope(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return sum((g**2).sum() for g in jax.grad(loss, (0, 1))(x, kernel))  # type: ignore[return-value]

    rows = jax.device_put(x, NamedSharding(mesh(), P("data")))
    whole = jax.device_put(kernel, NamedSharding(mesh(), P()))
    for derivative in (jax.grad(loss, (0, 1)), jax.grad(slope, (0, 1))):
        assert calls(dividing(derivative), rows, whole) == calls(derivative, x, kernel) >= fewest
        several = jax.jit(dividing(derivative))(rows, whole)
        for a, b in zip(several, jax.jit(derivative)(x, kernel), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()), rtol=0)


def test_images_that_the_devices_cannot_divide_are_xlas() -> None:
    """So are all of a function that is not told of the devices."""
    native.use_native_convolutions()
    kernel = jax.device_put(random(3, 3, 16, 32), NamedSharding(mesh(), P()))
    odd = jax.device_put(random(2 * COUNT + 1, 8, 8, 16), NamedSharding(mesh(), P()))
    for function in (convolved, pooled):
        assert calls(dividing(function), odd, kernel) == 0
        assert calls(function, odd, kernel) == 0
        assert calls(dividing(function), odd[1:], kernel) == 1


def test_devices_of_other_platforms_have_no_native_calls() -> None:
    gpus = types.SimpleNamespace(size=4, devices=np.array([types.SimpleNamespace(platform="gpu")]))
    divisible = []
    devices.dividing(lambda: divisible.append(devices.divisible(8)), gpus)()  # type: ignore[arg-type]
    dividing(lambda: divisible.append(devices.divisible(8)))()
    assert divisible == [False, True]


def test_one_device_has_the_function_itself() -> None:
    one = Mesh(np.array(jax.devices()[:1]), ("data",))
    assert devices.dividing(convolved, one) is convolved
    assert devices.count() == 1
    assert devices.divisible(7)
    counts = []
    dividing(lambda: counts.append(devices.count()))()
    assert counts == [COUNT]
    assert devices.count() == 1
