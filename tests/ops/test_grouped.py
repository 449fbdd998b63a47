"""Grouped convolutions have the right gradients however images are split over devices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxres.ops.grouped import Window, grouped_convolution, kernel_gradient_by_taps

ROWS, WHOLE = PartitionSpec("data"), PartitionSpec()
Function = Callable[[jax.Array, jax.Array], Any]
SETTINGS = {
    "two groups": (3, 1, (1, 1), 1, 2),
    "strided": (3, 2, (0, 1), 1, 4),
    "depthwise": (7, 1, (3, 3), 1, 8),
    "dilated": (3, 1, (2, 2), 2, 2),
}


def usual(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Any, dilation: int, groups: int
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [padding] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def arrays(size: int, groups: int) -> tuple[jax.Array, jax.Array]:
    """Returns images and a kernel."""
    keys = jax.random.split(jax.random.key(size), 2)
    x = jax.random.normal(keys[0], (8, 6, 5, 8))
    return x, jax.random.normal(keys[1], (size, size, 8 // groups, 8))


def on(mesh: Mesh, x: jax.Array, kernel: jax.Array, spec: PartitionSpec = ROWS) -> Any:
    """Returns images split over a mesh, and a kernel that each device has."""
    return jax.device_put((x, kernel), (NamedSharding(mesh, spec), NamedSharding(mesh, WHOLE)))


def loss(convolve: Function, x: jax.Array, kernel: jax.Array) -> jax.Array:
    y = convolve(x, kernel)
    return (jnp.sin(y) * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum()


def first_order(convolve: Function) -> Function:
    return jax.grad(functools.partial(loss, convolve), (0, 1))


def second_order(convolve: Function) -> Function:
    def norm(x: jax.Array, kernel: jax.Array) -> Any:
        return sum((leaf * leaf).sum() for leaf in first_order(convolve)(x, kernel))

    return jax.grad(norm, (0, 1))


def forward_mode(convolve: Function) -> Function:
    return lambda x, kernel: jax.jvp(convolve, (x, kernel), (jnp.cos(x), jnp.sin(kernel)))


def require_alike(ours: Any, theirs: Any) -> None:
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("derivative", [first_order, second_order, forward_mode])
@pytest.mark.parametrize("name", SETTINGS)
def test_derivatives_are_those_of_xla_on_one_device(
    name: str, derivative: Callable[[Function], Function]
) -> None:
    size, *settings = SETTINGS[name]
    x, kernel = arrays(size, settings[-1])
    ours, theirs = (lambda x, k, f=f: f(x, k, *settings) for f in (grouped_convolution, usual))
    require_alike(jax.jit(derivative(ours))(x, kernel), jax.jit(derivative(theirs))(x, kernel))


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((8, 1), PartitionSpec("data")),
        ((4, 2), PartitionSpec("data")),
        ((2, 4), PartitionSpec("data")),
        ((2, 4), PartitionSpec(("model", "data"))),
        ((4, 2), PartitionSpec(None, "model")),
        ((2, 4), PartitionSpec()),
    ],
)
def test_the_gradient_of_the_kernel_is_the_same_on_every_mesh(
    shape: tuple[int, int], spec: PartitionSpec
) -> None:
    """XLA's own is a multiple of it where several devices have the same images."""
    x, kernel = arrays(3, 2)
    settings = (1, (1, 1), 1, 2)
    devices = np.array(jax.devices()[:8])[[3, 1, 7, 0, 5, 2, 6, 4]]
    mesh = Mesh(devices.reshape(shape), ("data", "model"))
    gradient = jax.jit(first_order(lambda x, k: grouped_convolution(x, k, *settings)))
    require_alike(
        gradient(*on(mesh, x, kernel, spec)),
        jax.jit(first_order(lambda x, k: usual(x, k, *settings)))(x, kernel),
    )


@pytest.mark.parametrize("rows", [1, 3, 6, 12])
def test_rows_that_the_devices_do_not_divide(rows: int) -> None:
    x, kernel = arrays(3, 2)
    x = jnp.concatenate([x, jnp.flip(x)])
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))

    def some(x: jax.Array, kernel: jax.Array) -> Any:
        gradient = first_order(lambda x, k: grouped_convolution(x, k, 1, (1, 1), 1, 2))
        return gradient(x[:rows], kernel)

    require_alike(jax.jit(some)(*on(mesh, x, kernel)), jax.jit(some)(x, kernel))


def test_each_device_computes_its_images() -> None:
    """XLA alone gathers the whole batch on each device."""
    x, kernel = arrays(3, 2)
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "model"))
    gradient = first_order(lambda x, k: grouped_convolution(x, k, 1, (1, 1), 1, 2))
    text = jax.jit(gradient).lower(*on(mesh, x, kernel)).compile().as_text()
    assert text is not None
    assert "all-reduce" in text
    assert "all-gather" not in text


def test_parts_of_a_batch_on_some_of_the_devices() -> None:
    """The rows of a part lie on every other pair of devices; XLA's own gradient is twice this."""
    x, kernel = arrays(3, 2)
    x = jnp.concatenate([x, jnp.flip(x)])

    def part(x: jax.Array, kernel: jax.Array) -> Any:
        rows = x.reshape(-1, 2, 4, *x.shape[1:])[:, 1].reshape(-1, *x.shape[1:])
        return first_order(lambda x, k: grouped_convolution(x, k, 1, (1, 1), 1, 2))(rows, kernel)

    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    require_alike(jax.jit(part)(*on(mesh, x, kernel)), jax.jit(part)(x, kernel))


def sum_of_result(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return grouped_convolution(x, kernel, 1, (1, 1), 1, 4).sum()


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
@pytest.mark.parametrize("name", ["strided", "dilated"])
def test_derivatives_under_vmap(name: str, axes: tuple[int | None, int | None]) -> None:
    size, *settings = SETTINGS[name]
    x, kernel = arrays(size, settings[-1])
    places = (2, 1)  # of the mapped axis
    stacked = [jnp.stack([a, jnp.cos(a), -a], i) for a, i in zip((x, kernel), places, strict=True)]
    operands = [b if i == 0 else a for a, b, i in zip((x, kernel), stacked, axes, strict=True)]
    where = tuple(place if i == 0 else None for place, i in zip(places, axes, strict=True))

    def within(convolve: Function) -> Function:
        return jax.vmap(convolve, in_axes=where)

    def twice(convolve: Function) -> Function:
        return jax.vmap(jax.vmap(convolve, in_axes=(None, 0)), in_axes=(0, None))

    ours, theirs = (lambda x, k, f=f: f(x, k, *settings) for f in (grouped_convolution, usual))
    for derivative in (first_order, forward_mode):
        for transform in (
            lambda f, d=derivative: within(d(f)),
            lambda f, d=derivative: d(within(f)),
        ):
            a, b = (jax.jit(transform(f))(*operands) for f in (ours, theirs))
            require_alike(a, b)
    images, kernels = (jnp.stack([a, 2 * a]) for a in (x, kernel))
    a, b = (jax.jit(first_order(twice(f)))(images, kernels) for f in (ours, theirs))
    require_alike(a, b)


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
@pytest.mark.parametrize("split", [None, "model"])
def test_under_vmap_on_a_mesh(split: str | None, axes: tuple[int | None, int | None]) -> None:
    """XLA's own gradient of the kernel is a multiple of this for half of them."""
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "model"))
    settings = (1, (1, 1), 1, 2)
    x, kernel = arrays(3, 2)
    stacked = [jnp.stack([a, jnp.sin(a)]) for a in (x, kernel)]
    operands = [b if i == 0 else a for a, b, i in zip((x, kernel), stacked, axes, strict=True)]
    specs = [
        PartitionSpec(split, "data") if axes[0] == 0 else ROWS,
        PartitionSpec(split) if axes[1] == 0 else WHOLE,
    ]
    placed = jax.device_put(operands, [NamedSharding(mesh, spec) for spec in specs])

    def gradient(f: Any) -> Any:
        return jax.jit(first_order(jax.vmap(lambda x, k: f(x, k, *settings), in_axes=axes)))

    require_alike(gradient(grouped_convolution)(*placed), gradient(usual)(*operands))


@pytest.mark.parametrize("axes", [{"data"}, {"data", "model"}])
def test_in_a_shard_map_over_some_axes_or_all(axes: set[str]) -> None:
    x, kernel = arrays(3, 4)
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    local = jax.shard_map(
        jax.grad(sum_of_result, 1),
        mesh=mesh,
        in_specs=(ROWS, WHOLE),
        out_specs=WHOLE,
        axis_names=axes,
    )
    require_alike(jax.jit(local)(x, kernel), jax.grad(sum_of_result, 1)(x, kernel))


def test_exported_for_several_devices() -> None:
    x, kernel = arrays(3, 4)
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    shardings = [NamedSharding(mesh, spec) for spec in (ROWS, WHOLE)]
    gradient = jax.jit(jax.grad(sum_of_result, 1), in_shardings=shardings)
    exported = jax.export.deserialize(jax.export.export(gradient)(x, kernel).serialize())
    placed = jax.device_put((x, kernel), tuple(shardings))
    require_alike(jax.jit(exported.call)(*placed), jax.grad(sum_of_result, 1)(x, kernel))


@pytest.mark.parametrize("name", SETTINGS)
def test_the_products_of_taps_are_the_gradient(name: str) -> None:
    size, *settings = SETTINGS[name]
    x, kernel = arrays(size, settings[-1])
    y, transpose = jax.vjp(lambda kernel: usual(x, kernel, *settings), kernel)
    stride, padding, dilation, groups = settings
    window = Window(x.shape[1:3], kernel.shape[:2], stride, padding, dilation, groups)
    require_alike(kernel_gradient_by_taps(x, y, window), transpose(y)[0])
