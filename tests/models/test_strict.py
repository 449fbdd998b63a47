"""Networks under JAX's strict settings and on a mesh of explicit axes."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import flaxres
from flaxres.models.network import Network
from tests.models.test_sides import BASIC, BOTTLENECK, NETWORKS

SHORT: dict[str, Any] = {"depths": (1, 1), "widths": (8, 8)}
MORE: dict[str, Network] = {
    "stochastic": BASIC(**SHORT, stochastic_depth=0.2, dropout=0.1),
    "scanned": BASIC(**SHORT | {"depths": (3, 1)}, scan_blocks=True),
    "bfloat16": BOTTLENECK(**SHORT, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16),
    "grouped": BASIC(**SHORT, bn_group=2),
    **{
        name: flaxres.create_model(name, num_classes=4, depths=(1, 1), widths=(128, 256))
        for name in ("seresnet50", "ecaresnet50d", "resnext50_32x4d", "resnetv2_50x1_bit")
    },
}


def loss(model: Network, params: Any, rest: Any, x: jax.Array) -> jax.Array:
    """Returns the mean logit in training."""
    rngs = {"dropout": jax.random.key(1)}
    variables = {"params": params, **rest}
    logits, _ = model.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)
    return logits.astype(jnp.float32).mean()


def trace_gradient(model: Network, sharding: NamedSharding | None = None) -> Any:
    """Traces the gradient of a training step, and returns its shapes."""
    side = next(side for side in (64, 63, 33) if model.extents(side) is not None)
    images = functools.partial(jax.ShapeDtypeStruct, (8, side, side, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images())
    rest = {name: value for name, value in variables.items() if name != "params"}
    gradient = jax.grad(functools.partial(loss, model))
    return jax.eval_shape(gradient, variables["params"], rest, images(sharding=sharding))


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """Raises where shapes of several ranks or arrays of several dtypes meet."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.mark.parametrize("name", ["standard", "dense", "scanned", "bfloat16"])
def test_strict_settings(name: str) -> None:
    with strict():
        trace_gradient((NETWORKS | MORE)[name])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * ("dilated" in name))
        for name in NETWORKS | MORE
    ],
)
def test_strict_settings_on_an_explicit_mesh(name: str) -> None:
    """Traces the gradient on `jax.make_mesh`'s default, a mesh of explicit axes."""
    mesh = jax.make_mesh((4,), ("data",))
    assert mesh.axis_types == (AxisType.Explicit,)
    with strict(), jax.set_mesh(mesh):
        trace_gradient((NETWORKS | MORE)[name], NamedSharding(mesh, PartitionSpec("data")))


@pytest.mark.parametrize("name", ["dense", "resnext50_32x4d"])
def test_in_a_shard_map_over_one_of_two_axes(name: str) -> None:
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    rows, whole = PartitionSpec("data"), PartitionSpec()
    model = (NETWORKS | MORE)[name].clone(axis_name="data")
    images = jax.ShapeDtypeStruct((8, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    rest = {"batch_stats": variables["batch_stats"]}
    gradient = jax.shard_map(
        jax.grad(functools.partial(loss, model)),
        mesh=mesh,
        in_specs=(whole, whole, rows),
        out_specs=whole,
        axis_names={"data"},
    )
    jax.jit(gradient).lower(variables["params"], rest, images)


@pytest.mark.slow
def test_explicit_mesh_gives_the_gradient_of_one_device() -> None:
    model = NETWORKS["dense"]  # of 1x1 convolutions, whose gradient names its sharding
    x = jax.random.normal(jax.random.key(2), (8, 33, 33, 3))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    rest = {"batch_stats": variables["batch_stats"]}
    # A new function each time: JAX keeps one trace of a function.
    alone = jax.jit(jax.grad(functools.partial(loss, model)))(variables["params"], rest, x)
    mesh = jax.make_mesh((4,), ("data",))
    with jax.set_mesh(mesh):
        split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        whole = jax.device_put((variables["params"], rest), NamedSharding(mesh, PartitionSpec()))
        joined = jax.jit(jax.grad(functools.partial(loss, model)))(*whole, split)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(alone))
    for ours, theirs in zip(jax.tree.leaves(joined), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * largest)
