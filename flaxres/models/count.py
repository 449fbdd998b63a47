"""What a network costs, counted from its own trace: parameters and multiply-accumulates."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from flaxres.models.network import Network
from flaxres.ops.convolution import convolution_p


def parameters(model: Network, size: int = 64) -> int:
    """Numbers that training changes; running statistics are not counted."""
    images = jax.ShapeDtypeStruct((1, size, size, model.in_channels), jnp.float32)
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), images)["params"]))


def multiply_accumulates(model: Network, size: int) -> int:
    """Of the convolutions and products of one image of `size` x `size` pixels in inference."""
    images = jax.ShapeDtypeStruct((1, size, size, model.in_channels), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return in_jaxpr(jax.make_jaxpr(model.apply)(variables, images).jaxpr)


def in_jaxpr(jaxpr: Any) -> int:
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
        elif equation.primitive.name == "cond":  # forms of one computation, for different devices
            total += max(in_jaxpr(branch.jaxpr) for branch in equation.params["branches"])
            continue
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                total += in_jaxpr(getattr(inner, "jaxpr", inner)) * equation.params.get("length", 1)
    return total
