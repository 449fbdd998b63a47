"""Batch norm as one native operation against its form in JAX's operations."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

import flaxres
from flaxres.models.layers import BatchNorm, norm_relu, norm_sum_relu
from flaxres.ops import devices, native
from flaxres.ops.batch_norm import batch_norm, pixels, plain_moments, plain_norm
from tests.ops.native_cases import calls, needs_compiler

pytestmark = needs_compiler

# (groups, images, H, W, C): whole and cut vectors of channels, one part and several.
SHAPES = [
    (1, 4, 5, 7, 64),
    (2, 3, 9, 4, 24),
    (1, 16, 14, 14, 80),
    (1, 2, 3, 3, 5),
    (1, 2, 1, 1, 16),
]
BEHIND = [(False, False), (True, False), (True, True)]
EPSILON = 1e-5


def operands(shape: tuple[int, ...], dtype: str, added: bool) -> list[jax.Array]:
    """Returns x, the scale, the bias and the shortcut where there is one."""
    rng = np.random.default_rng(0)
    channels = shape[-1:]
    x, shortcut = (jnp.asarray(rng.normal(1, 2, shape), dtype) for _ in range(2))
    scale, bias = (jnp.asarray(rng.normal(1, 1, channels), jnp.float32) for _ in range(2))
    return [x, scale, bias, *([shortcut] if added else [])]


def ours(relu: bool) -> Callable[..., Any]:
    def norm(x: jax.Array, scale: jax.Array, bias: jax.Array, *shortcut: jax.Array) -> Any:
        shift = jnp.full(scale.shape, 0.9, jnp.float32)
        return batch_norm(EPSILON, relu, x, shift, scale, bias, *shortcut)

    return norm


def usual(relu: bool) -> Callable[..., Any]:
    def norm(x: jax.Array, scale: jax.Array, bias: jax.Array, *shortcut: jax.Array) -> Any:
        shift = jnp.full(scale.shape, 0.9, jnp.float32)
        given = x, plain_moments(x, shift), shift, scale, bias, *shortcut
        return plain_norm(*given, epsilon=EPSILON, relu=relu, count=pixels(x))

    return norm


def loss(norm: Callable[..., Any]) -> Callable[..., jax.Array]:
    """Returns a function of all results, with changing weights."""

    def total(*given: jax.Array) -> jax.Array:
        y, offset, variance = norm(*given)
        return jnp.sin(2 * y.astype(jnp.float32)).sum() + jnp.square(offset + variance).sum()

    return total


def assert_near(mine: Any, theirs: Any, tolerance: float) -> None:
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("relu", "added"), BEHIND)
def test_it_is_the_plain_norm_to_any_order(shape: tuple[int, ...], relu: bool, added: bool) -> None:
    native.use_native_convolutions()
    given = operands(shape, "float32", added)
    mine, theirs = loss(ours(relu)), loss(usual(relu))
    places = tuple(range(len(given)))
    assert calls(ours(relu), *given) == 2
    assert calls(jax.grad(mine, places), *given) == 4
    assert_near(jax.jit(ours(relu))(*given), jax.jit(usual(relu))(*given), 2e-6)
    for transform in (
        lambda f: jax.grad(f, places),
        lambda f: lambda *x: jax.jvp(f, x, x),
        lambda f: lambda *x: jax.jvp(jax.grad(f, places), x, x),
        lambda f: jax.grad(lambda *x: sum((g**2).sum() for g in jax.grad(f, places)(*x)), places),
    ):
        both = (jax.jit(transform(function))(*given) for function in (mine, theirs))
        assert_near(*both, 1e-4)  # two pixels of a channel magnify what rounding leaves


@pytest.mark.parametrize("shape", SHAPES[:4])
@pytest.mark.parametrize(("relu", "added"), BEHIND)
def test_bfloat16_has_sums_in_float32(shape: tuple[int, ...], relu: bool, added: bool) -> None:
    native.use_native_convolutions()
    if not native.computes("bfloat16"):
        pytest.skip("this processor doesn't round to bfloat16")
    given = operands(shape, "bfloat16", added)
    wide = [array.astype(jnp.float32) for array in given]

    def pulled(norm: Callable[..., Any], given: list[jax.Array]) -> Any:
        y, back = jax.vjp(lambda *x: norm(*x)[0], *given)
        change = jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.bfloat16)
        return y, back(change.astype(y.dtype))

    mine, theirs = pulled(ours(relu), given), pulled(usual(relu), wide)
    assert mine[0].dtype == mine[1][0].dtype == jnp.bfloat16
    assert_near((mine[0], mine[1][0]), (theirs[0], theirs[1][0]), 2**-8)
    assert_near(mine[1][1:3], theirs[1][1:3], 1e-6)


def test_a_nan_is_not_hidden_by_the_relu() -> None:
    native.use_native_convolutions()
    x, scale, bias = operands((1, 2, 3, 3, 24), "float32", False)
    y, _, variance = ours(True)(x.at[0, 1, 2, 2, 5].set(jnp.nan), scale, bias)
    assert np.isnan(y[..., 5]).all()
    assert np.isnan(variance[0, 5])
    assert np.isfinite(np.delete(y, 5, -1)).all()


def test_it_may_be_mapped_over_and_split() -> None:
    """`jax.vmap`, `jax.shard_map`, and a program for several devices, which has no native call."""
    native.use_native_convolutions()
    given = operands((1, 8, 5, 4, 24), "float32", True)
    mine, theirs = loss(ours(True)), loss(usual(True))
    many = [jnp.stack([array, 2 * array]) for array in given]
    assert_near(jax.vmap(mine)(*many), jax.vmap(theirs)(*many), 1e-5)
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = P(None, "data"), P()
    split = [NamedSharding(mesh, rows if array.ndim > 1 else whole) for array in given]
    placed = [jax.device_put(array, place) for array, place in zip(given, split, strict=True)]
    gradient = jax.grad(mine, (0, 1, 2, 3))
    assert calls(gradient, *placed) == 0
    expected = jax.grad(theirs, (0, 1, 2, 3))(*given)
    assert_near(jax.jit(gradient)(*placed), expected, 1e-5)

    def of_shards(function: Callable[..., Any]) -> Any:
        specs = (rows, whole, whole, rows)
        total = jax.shard_map(
            lambda *x: jax.lax.psum(function(*x), "data"), mesh=mesh, in_specs=specs, out_specs=P()
        )
        return jax.jit(jax.grad(total, (0, 1, 2, 3)))(*given)

    assert_near(of_shards(mine), of_shards(theirs), 1e-5)


@pytest.mark.parametrize(("groups", "images"), [(1, 8), (4, 2), (8, 3)])
@pytest.mark.parametrize(("relu", "added"), BEHIND)
def test_each_device_computes_its_images(groups: int, images: int, relu: bool, added: bool) -> None:
    """One group's sums are added over the devices; several groups need no sums of others."""
    native.use_native_convolutions()
    given = operands((groups, images, 5, 4, 24), "float32", added)
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",), axis_types=(AxisType.Auto,))
    places = tuple(range(len(given)))
    gradient = devices.dividing(jax.grad(loss(ours(relu)), places), mesh)
    whole = jax.device_put(given, NamedSharding(mesh, P()))
    assert calls(gradient, *whole) == 4
    compiled = jax.jit(gradient).lower(*whole).compile()
    expected = jax.jit(jax.grad(loss(usual(relu)), places))(*given)
    assert_near(compiled(*whole), expected, 1e-5)
    twice = jax.grad(
        lambda *x: sum((g**2).sum() for g in jax.grad(loss(ours(relu)), places)(*x)), places
    )
    theirs = jax.grad(
        lambda *x: sum((g**2).sum() for g in jax.grad(loss(usual(relu)), places)(*x)), places
    )
    assert_near(jax.jit(devices.dividing(twice, mesh))(*whole), jax.jit(theirs)(*given), 1e-4)


@pytest.mark.parametrize("group", [None, 2])
def test_the_module_is_the_same_with_it(group: int | None) -> None:
    """Statistics too, with a ReLU, a sum and a ReLU, and neither behind the norm."""
    module = BatchNorm(group=group)
    x, _, _, shortcut = (
        part[0] if part.ndim > 1 else part for part in operands((1, 6, 5, 4, 24), "float32", True)
    )
    start = module.init(jax.random.key(0), x, use_running_average=False)

    def results(behind: Callable[..., jax.Array]) -> Any:
        def total(params: Any, x: jax.Array, shortcut: jax.Array) -> Any:
            variables = start | {"params": params}
            y, new = module.apply(variables, x, shortcut, method=behind, mutable=["batch_stats"])
            return jnp.sin(y).sum(), new

        return jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(
            start["params"], x, shortcut
        )

    forms: list[Callable[..., jax.Array]] = [
        lambda norm, x, shortcut: norm(x, False),
        lambda norm, x, shortcut: norm_relu(norm, x, True),
        lambda norm, x, shortcut: norm_sum_relu(norm, x, shortcut, True),
    ]
    without = [results(form) for form in forms]
    native.use_native_convolutions()
    assert_near([results(form) for form in forms], without, 1e-5)


@pytest.mark.slow
def test_a_step_in_bfloat16_follows_float32() -> None:
    """The gradient of a network in bfloat16 points where that of float32 does."""
    native.use_native_convolutions()
    if not native.computes("bfloat16"):
        pytest.skip("this processor doesn't multiply bfloat16")
    images = jnp.asarray(np.random.default_rng(0).normal(size=(16, 64, 64, 3)), jnp.float32)
    network = functools.partial(flaxres.create_model, "resnet18", num_classes=10)
    variables = network().init(jax.random.key(0), images)

    def gradient(dtype: str) -> np.ndarray:
        def total(params: Any) -> jax.Array:
            logits, _ = network(dtype=jnp.dtype(dtype)).apply(
                variables | {"params": params}, images, train=True, mutable=["batch_stats"]
            )
            return jnp.square(jnp.asarray(logits).astype(jnp.float32)).mean()

        found = jax.jit(jax.grad(total))(variables["params"])
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found)])

    one, other = gradient("float32"), gradient("bfloat16")
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert cosine > 0.99
