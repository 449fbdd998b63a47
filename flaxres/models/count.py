"""Counts the parameters and multiply-accumulates of a network from its own trace."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from flaxres.models.network import Network
from flaxres.ops.convolution import convolution_p


def parameters(model: Network, size: int = 64) -> int:
    """Returns the number of trainable parameters; running statistics do not count."""
    images = jax.ShapeDtypeStruct((1, size, size, model.in_channels), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def multiply_accumulates(model: Network, size: int) -> int:
    """Returns the multiply-accumulates of one image of `size` x `size` pixels in inference.

    Convolutions and products count; elementwise operations and reductions do not.
    """
    images = jax.ShapeDtypeStruct((1, size, size, model.in_channels), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return in_jaxpr(jax.make_jaxpr(model.apply)(variables, images).jaxpr)


def holds_equations(leaf: Any) -> bool:
    """Returns whether a parameter of an equation is a jaxpr, closed or not."""
    return hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")


def in_jaxpr(jaxpr: Any) -> int:
    """Sums the multiply-accumulates of a jaxpr and of the jaxprs inside it."""
    total = 0
    for equation in jaxpr.eqns:
        outputs = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if equation.primitive.name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
            total += outputs * math.prod(kernel) // kernel[numbers.rhs_spec[0]]
        elif equation.primitive is convolution_p:
            total += outputs * math.prod(equation.invars[1].aval.shape[:3])
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += outputs * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        elif equation.primitive.name == "cond":  # forms of one operation for different platforms
            total += max(in_jaxpr(branch.jaxpr) for branch in equation.params["branches"])
            continue
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=holds_equations):
            if holds_equations(inner):
                total += in_jaxpr(getattr(inner, "jaxpr", inner)) * equation.params.get("length", 1)
    return total
