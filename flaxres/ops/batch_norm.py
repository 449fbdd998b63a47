"""Batch normalisation by the statistics of the batch as one operation, for native code on CPUs.

XLA's CPU compiler computes a norm and its gradient in many passes over memory, and converts
bfloat16 slowly. `norm.cc` reads an activation twice forward, and it and its cotangent twice
backward. Programs that can't call it compute the same by JAX's operations.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir
from jaxtyping import Array, Float

from flaxres.ops import native
from flaxres.ops.kept import jax_only, varying_alike
from flaxres.ops.lowering import define_call
from flaxres.ops.norm import by_channel, normalised, shifted_moments

Activations = Float[Array, "groups images h w c"]
Channels = Float[Array, "groups c"]

norm_p = Primitive("flaxres_norm")
tangent_p = Primitive("flaxres_norm_tangent")
gradient_p = Primitive("flaxres_norm_gradient")


def pays(dtype: Any, wide: Any) -> bool:
    """Returns whether a norm of this dtype, with statistics in `wide`, should be `batch_norm`."""
    return bool(wide == jnp.float32) and not jax_only.get() and native.computes(dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def batch_norm(
    epsilon: float,
    relu: bool,
    x: Activations,
    shift: Float[Array, " c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    *shortcut: Activations,
) -> tuple[Activations, Channels, Channels]:
    """Normalises each group of images by its statistics.

    Args:
      epsilon: is added to the variance.
      relu: a ReLU follows.
      x: activations.
      shift: an estimate of the mean; see `flaxres.ops.norm.shifted_moments`.
      scale, bias: of the norm.
      shortcut: nothing, or activations that are added to the norm's result before the ReLU.

    Returns:
      The result in the dtype of `x`, the mean less the shift, and the biased variance.
    """
    operands = varying_alike(x, shift, scale, bias, *shortcut)
    y, offset, variance = norm_p.bind(*operands, epsilon=epsilon, relu=relu)
    return y, offset, variance


@batch_norm.defjvp
def batch_norm_jvp(
    epsilon: float, relu: bool, primals: Sequence[jax.Array], tangents: Sequence[jax.Array]
) -> tuple[Any, Any]:
    x, shift, scale, bias, *_ = primals
    x_dot, shift_dot, *rest_dot = tangents
    y, offset, variance = batch_norm(epsilon, relu, *primals)
    mean, inverse = by_channel(shift, offset) + offset, lax.rsqrt(variance + epsilon)
    operands = varying_alike(x_dot, *rest_dot, x, y, mean, inverse, scale, bias)
    y_dot = tangent_p.bind(*operands, relu=relu)
    wide_dot = x_dot.astype(mean.dtype)
    mean_dot = wide_dot.mean((1, 2, 3))
    square_dot = (wide_dot * (x.astype(mean.dtype) - by_image(mean))).mean((1, 2, 3))
    tangents = (y_dot, mean_dot - by_channel(shift_dot, offset), 2 * square_dot)
    return (y, offset, variance), tangents


def by_image(values: Channels) -> Float[Array, "groups 1 1 1 c"]:
    """Gives the values of groups the axes of activations."""
    return values[:, None, None, None]


def plain_norm(
    x: jax.Array,
    shift: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *shortcut: jax.Array,
    epsilon: float,
    relu: bool,
) -> tuple[jax.Array, ...]:
    """Computes `batch_norm` by JAX's operations."""
    offset, variance = shifted_moments(x, shift, None)
    mean = by_channel(shift, offset) + offset
    factor = by_channel(scale, offset) * lax.rsqrt(variance + epsilon)
    y = normalised(mean.dtype, x, by_image(mean), by_image(factor), by_channel(bias, x))
    y = sum((other.astype(y.dtype) for other in shortcut), y)
    return (jnp.maximum(y, 0) if relu else y).astype(x.dtype), offset, variance


def plain_tangent(*operands: jax.Array, relu: bool) -> jax.Array:
    """Computes the tangent of `batch_norm`'s result.

    Args:
      *operands: tangents of `x`, `scale`, `bias` and, where there is one, of the shortcut; `x`,
        the result `y`, the mean, the inverse of the deviation, `scale` and `bias`.
      relu: a ReLU follows the norm.
    """
    x_dot, scale_dot, bias_dot, *shortcut_dot = operands[:-6]
    x, y, mean, inverse, scale, bias = operands[-6:]
    wide = mean.dtype
    normal = (x.astype(wide) - by_image(mean)) * by_image(inverse)
    change, axes = x_dot.astype(wide), (1, 2, 3)
    along = (change * normal).mean(axes, keepdims=True)
    change = (change - change.mean(axes, keepdims=True) - normal * along) * by_image(inverse)
    z_dot = change * by_channel(scale, x) + normal * by_channel(scale_dot, x)
    z_dot = z_dot + by_channel(bias_dot, x)
    z_dot = sum((other.astype(wide) for other in shortcut_dot), z_dot)
    if relu:
        z_dot = jnp.where(passes(x, y, mean, inverse, scale, bias, shortcut_dot), z_dot, 0)
    return z_dot.astype(x.dtype)


def passes(
    x: jax.Array,
    y: jax.Array,
    mean: jax.Array,
    inverse: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shortcut: Sequence[jax.Array],
) -> jax.Array:
    """Returns where the ReLU passes: where the norm, or with a shortcut the result, is above 0."""
    if shortcut:
        return y > 0
    factor = by_image(by_channel(scale, inverse) * inverse)
    return normalised(mean.dtype, x, by_image(mean), factor, by_channel(bias, x)) > 0


def plain_gradient(*operands: jax.Array, relu: bool, added: bool) -> tuple[jax.Array, ...]:
    """Computes the transpose of `plain_tangent`.

    Args:
      *operands: cotangent of the result; then `x` to `bias` as there.
      relu: a ReLU follows the norm.
      added: a shortcut is added before it.

    Returns:
      Cotangents of `x`, of `scale` and `bias` for each group, and of the shortcut if there is one.
    """
    cotangent, x, y, mean, inverse, scale, bias = operands
    wide, axes = mean.dtype, (1, 2, 3)
    if relu:
        passing = passes(x, y, mean, inverse, scale, bias, (y,) if added else ())
        cotangent = jnp.where(passing, cotangent, jnp.zeros((), cotangent.dtype))
    change, normal = cotangent.astype(wide), (x.astype(wide) - by_image(mean)) * by_image(inverse)
    of_scale, of_bias = (change * normal).sum(axes), change.sum(axes)
    count = x.shape[1] * x.shape[2] * x.shape[3]
    inner = change - by_image(of_bias / count) - normal * by_image(of_scale / count)
    of_x = inner * by_image(by_channel(scale, inverse) * inverse)
    return (of_x.astype(x.dtype), of_scale, of_bias, *((cotangent,) if added else ()))


def native_norm(
    context: mlir.LoweringRuleContext, *operands: Any, epsilon: float, relu: bool
) -> Any:
    added = len(operands) == 5
    call = jax.ffi.ffi_lowering(f"flaxres_norm_{context.avals_out[0].dtype}")
    avals = [*context.avals_in, *([] if added else context.avals_in[:1])]
    full = context.replace(avals_in=avals)
    filled = (*operands, *(() if added else operands[:1]))
    return call(full, *filled, epsilon=np.float32(epsilon), relu=relu, added=added)


def native_gradient(
    context: mlir.LoweringRuleContext, *operands: Any, relu: bool, added: bool
) -> Any:
    cotangent, x, y, *rest = operands
    of_cotangent, of_x, of_y, *of_rest = context.avals_in
    name = "norm_sum_gradient" if added else "norm_gradient"
    call = jax.ffi.ffi_lowering(f"flaxres_{name}_{context.avals_out[0].dtype}")
    if added:
        full = context.replace(avals_in=[of_cotangent, of_x, *of_rest, of_y])
        return call(full, cotangent, x, *rest, y)
    full = context.replace(avals_in=[of_cotangent, of_x, *of_rest])
    return call(full, cotangent, x, *rest, relu=relu)


def transposed(cotangent: jax.Array, *operands: Any, relu: bool) -> list[Any]:
    """Returns the cotangents of `tangent_p`'s operands: those of the tangents."""
    linear, fixed = operands[:-6], operands[-6:]
    given = varying_alike(cotangent, *fixed)
    added = len(linear) == 4
    of_x, of_scale, of_bias, *rest = gradient_p.bind(*given, relu=relu, added=added)
    found = [of_x, of_scale.sum(0), of_bias.sum(0), *rest]
    wanted = [
        value if ad.is_undefined_primal(operand) else None
        for value, operand in zip(found, linear, strict=True)
    ]
    return [*wanted, *(None for _ in fixed)]


norm_p.multiple_results = gradient_p.multiple_results = True
define_call(norm_p, plain_norm, native_norm)
define_call(tangent_p, plain_tangent)
define_call(gradient_p, plain_gradient, native_gradient)
ad.primitive_transposes[tangent_p] = transposed
