"""Counts the parameters and multiply-accumulates of a network from its own trace."""

import math
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp

from flaxres.models.network import Network
from flaxres.ops.convolution import convolution_p


def shapes(model: Network, size: int | None = None) -> dict[str, Any]:
    """Returns the shapes and dtypes of a network's variables; `size` matters to its trace alone."""
    size = size or model.probe_side
    images = jax.ShapeDtypeStruct((1, size, size, model.in_channels), jnp.float32)
    return dict(jax.eval_shape(model.init, jax.random.key(0), images))


def parameters(model: Network) -> int:
    """Returns the number of trainable parameters; running statistics do not count."""
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(model)["params"]))


def multiply_accumulates(model: Network, size: int) -> int:
    """Returns the multiply-accumulates of one image of `size` x `size` pixels in inference.

    Convolutions and products count; elementwise operations and reductions do not.
    """
    images = jax.ShapeDtypeStruct((1, size, size, model.in_channels), jnp.float32)
    return in_jaxpr(jax.make_jaxpr(model.apply)(shapes(model, size), images).jaxpr)


def holds_equations(leaf: Any) -> bool:
    """Returns whether a parameter of an equation is a jaxpr, closed or not."""
    return hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")


def in_jaxpr(jaxpr: Any) -> int:
    """Sums the multiply-accumulates of a jaxpr and of the jaxprs inside it."""
    return in_scopes(jaxpr, "").total()


def in_scopes(jaxpr: Any, mark: str, scope: str = "") -> Counter[str]:
    """Sums the multiply-accumulates of a jaxpr by named scope.

    Args:
      jaxpr: the jaxpr; those inside it count too.
      mark: how the names of the scopes begin. An equation counts for the innermost of them.
      scope: the scope of equations that are in none.
    """
    totals: Counter[str] = Counter()
    for equation in jaxpr.eqns:
        outputs = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        names = str(equation.source_info.name_stack).split("/")
        own = next((name for name in reversed(names) if mark and name.startswith(mark)), scope)
        if equation.primitive.name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
            totals[own] += outputs * math.prod(kernel) // kernel[numbers.rhs_spec[0]]
        elif equation.primitive is convolution_p:
            totals[own] += outputs * math.prod(equation.invars[1].aval.shape[:3])
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            summed = (equation.invars[0].aval.shape[axis] for axis in contracted)
            totals[own] += outputs * math.prod(summed)
        elif equation.primitive.name == "cond":  # forms of one operation for different platforms
            # The default form is the last one; the others may compute zeros besides.
            totals += in_scopes(equation.params["branches"][-1].jaxpr, mark, own)
            continue
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=holds_equations):
            if holds_equations(inner):
                repeats = equation.params.get("length", 1)
                for name, count in in_scopes(getattr(inner, "jaxpr", inner), mark, own).items():
                    totals[name] += count * repeats
    return totals
