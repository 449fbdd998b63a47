"""ReLU and the form of its derivative on each platform."""

import re
from collections.abc import Callable

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from flaxres.models.activations import relu
from flaxres.models.layers import BatchNorm
from flaxres.ops.kept import by_input, by_result
from flaxres.ops.norm import NORMALISED_AND_RECTIFIED
from flaxres.training.mesh import data_mesh


def test_relu_is_jaxs_to_any_order_and_under_every_transformation() -> None:
    x, v = jnp.asarray([-2.0, -0.0, 0.0, 1e-30, 3.0]), jnp.arange(1.0, 6.0)

    def derivatives(function: Callable[[jax.Array], jax.Array]) -> list[jax.Array]:
        return [
            function(x),
            jax.grad(lambda x: (function(x) * v).sum())(x),
            jax.jvp(function, (x,), (v,))[1],
            jax.vmap(jax.grad(lambda x: function(x) ** 2))(x),
            jax.hessian(lambda x: (function(x) ** 3).sum())(x),
            jax.grad(lambda x: (jax.checkpoint(function)(x) * v).sum())(x),
            jax.vmap(lambda v: jax.jvp(function, (x,), (v,))[1])(jnp.eye(5)),
            jax.vmap(lambda x: jax.jvp(function, (x,), (v,))[1], 1)(jnp.eye(5)),
            jax.vmap(jax.grad(lambda x: function(x).sum()))(jnp.eye(5) - 0.5),
            jax.vmap(jax.vmap(jax.grad(lambda x: function(x).sum())), 1)(
                jnp.eye(10).reshape(2, 5, 10) - 0.5
            ),
        ]

    usual = derivatives(nn.relu)
    for ours in (derivatives(relu), jax.jit(lambda: derivatives(relu))()):
        jax.tree.map(np.testing.assert_array_equal, ours, usual)


def test_relu_of_varying_values_has_a_tangent_that_does_not_vary() -> None:
    def derivative(x: jax.Array) -> jax.Array:
        return jax.jvp(relu, (x,), (jnp.ones(2),))[1]

    tangents = jax.jit(
        jax.shard_map(
            derivative,
            mesh=data_mesh(2),
            in_specs=PartitionSpec("data"),
            out_specs=PartitionSpec("data"),
        )
    )(jnp.asarray([-1.0, 1.0, 2.0, -2.0]))
    np.testing.assert_array_equal(tangents, [0, 1, 1, 0])


def test_both_gates_are_the_derivative_of_a_relu() -> None:
    x, tangent = jnp.asarray([-1.0, -0.0, 0.0, 1e-30, 2.0]), jnp.arange(1.0, 6.0)
    for apart in (False, True):
        np.testing.assert_array_equal(
            by_input(tangent, x, nn.relu(x), apart), by_result(tangent, x, nn.relu(x), apart)
        )


@pytest.mark.parametrize(
    ("platform", "mask", "barriers"),
    [("cuda", "NE", 1), ("rocm", "NE", 1), ("tpu", "GT", 0), ("cpu", "GT", 0)],
)
def test_the_gradient_of_relu_reads_the_result_on_gpus(
    platform: str, mask: str, barriers: int
) -> None:
    layer, x = BatchNorm(), jnp.ones((2, 2, 2, 4))
    variables = layer.init(jax.random.key(0), x, use_running_average=True)

    def norm(x: jax.Array) -> jax.Array:
        y, _ = layer.apply(
            variables,
            x,
            use_running_average=False,
            form=NORMALISED_AND_RECTIFIED,
            mutable=["batch_stats"],
        )
        return y.sum()

    alone = (lambda x: relu(x).sum(), [mask], 0)
    for function, expected, count in (alone, (norm, ["GT", mask], barriers)):
        lowered = jax.export.export(jax.jit(jax.grad(function)), platforms=[platform])(x)
        program = lowered.mlir_module()
        # Only comparisons of activations: those of the norm's variance, a vector, depend on jax.
        masks = re.findall(r"compare +(\w+),.*-> tensor<(?:1x)?2x2x2x4xi1>", program)
        assert sorted(masks) == expected
        assert len(re.findall(r"stablehlo.optimization_barrier", program)) == count
