"""Batch normalisation by the statistics of the batch in two operations, for native code on CPUs.

XLA's CPU compiler computes a norm and its gradient in many passes over memory, and converts
bfloat16 slowly. `norm.cc` reads an activation twice forward, and it and its cotangent twice
backward: once for sums over the pixels, once for the result. In programs for several devices the
sums of all are added in between. Programs that can't call it compute the same by JAX's operations.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from flaxres.ops import devices, native
from flaxres.ops.kept import jax_only, varying_alike
from flaxres.ops.lowering import define_call
from flaxres.ops.norm import by_channel, normalised

Activations = Float[Array, "groups images h w c"]
Channels = Float[Array, "groups c"]
Sums = Float[Array, "groups 2 c"]

moments_p = Primitive("flaxres_norm_moments")
norm_p = Primitive("flaxres_norm")
tangent_p = Primitive("flaxres_norm_tangent")
slopes_p = Primitive("flaxres_norm_slopes")
gradient_p = Primitive("flaxres_norm_gradient")
# Places in programs for several devices. Activations are `OF_ONE` with one group and `OF_SEVERAL`
# with several; values of groups and channels are `WHOLE` and `OF_SEVERAL`.
WHOLE, OF_ONE, OF_SEVERAL = devices.WHOLE, PartitionSpec(None, devices.AXIS), devices.ROWS


def pays(groups: int, images: int, dtype: Any, wide: Any) -> bool:
    """Returns whether a norm should be `batch_norm`.

    Args:
      groups: number of groups that share statistics.
      images: number of images in a group.
      dtype: of the activations.
      wide: dtype of the statistics.
    """
    usable = bool(wide == jnp.float32) and not jax_only.get() and native.computes(dtype)
    return usable and devices.divisible(images if groups == 1 else groups)


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
    rows, statistics = places(x)

    def norm(x: jax.Array, shift: jax.Array, *rest: jax.Array) -> Any:
        sums, count = moments_p.bind(x, shift), pixels(x)
        if statistics == WHOLE:
            sums, count = devices.total(sums), count * devices.count()
        return norm_p.bind(x, sums, shift, *rest, epsilon=epsilon, relu=relu, count=count)

    given = (rows, WHOLE, WHOLE, WHOLE, *(rows for _ in shortcut))
    on_each = devices.on_each(norm, given, [rows, statistics, statistics])
    y, offset, variance = on_each(x, shift, scale, bias, *shortcut)
    return y, offset, variance


def places(x: Activations) -> tuple[PartitionSpec, PartitionSpec]:
    """Returns the places of activations, and of values of their groups and channels.

    Several groups are divided as such, which takes no communication.
    """
    return (OF_ONE, WHOLE) if len(x) == 1 else (OF_SEVERAL, OF_SEVERAL)


def pixels(x: Activations) -> int:
    """Returns the number of pixels in a group."""
    return math.prod(x.shape[1:4])


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


def plain_moments(x: jax.Array, shift: jax.Array) -> Sums:
    """Computes the sums of each group's values, less the shift, and of their squares."""
    values = x.astype(shift.dtype) - by_channel(shift, x)
    return jnp.stack([values.sum((1, 2, 3)), jnp.square(values).sum((1, 2, 3))], 1)


def plain_norm(
    x: jax.Array,
    sums: jax.Array,
    shift: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *shortcut: jax.Array,
    epsilon: float,
    relu: bool,
    count: int,
) -> tuple[jax.Array, ...]:
    """Computes `batch_norm` from the sums over `count` pixels."""
    offset, square = sums[:, 0] / count, sums[:, 1] / count
    variance = jnp.maximum(square - jnp.square(offset), 0)
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


def plain_slopes(*operands: jax.Array, relu: bool, added: bool) -> tuple[jax.Array, ...]:
    """Computes the sums that `plain_gradient` needs.

    Args:
      *operands: cotangent of the norm's result; then `x` to `bias` as in `plain_tangent`.
      relu: a ReLU follows the norm.
      added: a shortcut is added before it.

    Returns:
      The sums of the cotangent, and of its products with the input less the mean; with a shortcut
      the cotangent less what the ReLU stops, too, which is that of the shortcut.
    """
    cotangent, x, y, mean, inverse, scale, bias = operands
    shortcut = (y,) if added else ()
    cotangent = stopped(cotangent, x, y, mean, inverse, scale, bias, shortcut, relu=relu)
    change, centred = cotangent.astype(mean.dtype), x.astype(mean.dtype) - by_image(mean)
    sums = jnp.stack([change.sum((1, 2, 3)), (change * centred).sum((1, 2, 3))], 1)
    return (sums, cotangent) if added else (sums,)


def stopped(cotangent: jax.Array, *operands: Any, relu: bool) -> jax.Array:
    """Returns a cotangent less what the ReLU stops, if there is one; `operands` are of `passes`."""
    if not relu:
        return cotangent
    passing = passes(*operands)
    return jnp.where(passing, cotangent, jnp.zeros((), cotangent.dtype))


def plain_gradient(*operands: jax.Array, relu: bool, count: int) -> tuple[jax.Array, ...]:
    """Computes the transpose of `plain_tangent`, but for the shortcut.

    Args:
      *operands: cotangent of the norm's result, or of the shortcut if there is one; `x`, the mean,
        the inverse of the deviation, `scale`, `bias` and the sums of `plain_slopes`.
      relu: the norm has a ReLU and no shortcut.
      count: pixels of a group on all devices.

    Returns:
      Cotangents of `x`, and of `scale` and `bias` for each group.
    """
    cotangent, x, mean, inverse, scale, bias, sums = operands
    cotangent = stopped(cotangent, x, x, mean, inverse, scale, bias, (), relu=relu)
    wide = mean.dtype
    change, normal = cotangent.astype(wide), (x.astype(wide) - by_image(mean)) * by_image(inverse)
    of_bias, of_scale = sums[:, 0], sums[:, 1] * inverse
    inner = change - by_image(of_bias / count) - normal * by_image(of_scale / count)
    of_x = inner * by_image(by_channel(scale, inverse) * inverse)
    return of_x.astype(x.dtype), of_scale, of_bias


def gradient(*operands: jax.Array, relu: bool, added: bool) -> Any:
    """Returns the cotangents of `x`, `scale`, `bias` and the shortcut, if there is one.

    Args:
      *operands: those of `plain_slopes`.
      relu, added: as there.
    """
    rows, statistics = places(operands[1])

    def computed(cotangent: jax.Array, x: jax.Array, y: jax.Array, *rest: jax.Array) -> Any:
        sums, *gated = slopes_p.bind(cotangent, x, y, *rest, relu=relu, added=added)
        count = pixels(x)
        if statistics == WHOLE:
            sums, count = devices.total(sums), count * devices.count()
        change = gated[0] if added else cotangent
        found = gradient_p.bind(change, x, *rest, sums, relu=relu and not added, count=count)
        return [*found, *gated]

    given = (rows, rows, rows, statistics, statistics, WHOLE, WHOLE)
    results = [rows, statistics, statistics, *([rows] if added else [])]
    return devices.on_each(computed, given, results)(*operands)


def native_moments(context: mlir.LoweringRuleContext, *operands: Any) -> Any:
    call = jax.ffi.ffi_lowering(f"flaxres_norm_moments_{dtype_of(context)}")
    return call(context, *operands)


def native_norm(
    context: mlir.LoweringRuleContext, *operands: Any, epsilon: float, relu: bool, count: int
) -> Any:
    added = len(operands) == 6
    call = jax.ffi.ffi_lowering(f"flaxres_norm_{dtype_of(context)}")
    avals = [*context.avals_in, *([] if added else context.avals_in[:1])]
    full = context.replace(avals_in=avals)
    filled = (*operands, *(() if added else operands[:1]))
    settings = {"epsilon": np.float32(epsilon), "relu": relu, "count": np.int64(count)}
    return call(full, *filled, added=added, **settings)


def native_slopes(
    context: mlir.LoweringRuleContext, *operands: Any, relu: bool, added: bool
) -> Any:
    cotangent, x, y, *rest = operands
    of_cotangent, of_x, of_y, *of_rest = context.avals_in
    name = "norm_sum_slopes" if added else "norm_slopes"
    call = jax.ffi.ffi_lowering(f"flaxres_{name}_{dtype_of(context)}")
    if added:
        full = context.replace(avals_in=[of_cotangent, of_x, *of_rest, of_y])
        return call(full, cotangent, x, *rest, y)
    full = context.replace(avals_in=[of_cotangent, of_x, *of_rest])
    return call(full, cotangent, x, *rest, relu=relu)


def native_gradient(
    context: mlir.LoweringRuleContext, *operands: Any, relu: bool, count: int
) -> Any:
    call = jax.ffi.ffi_lowering(f"flaxres_norm_gradient_{dtype_of(context)}")
    return call(context, *operands, relu=relu, count=np.int64(count))


def dtype_of(context: mlir.LoweringRuleContext) -> Any:
    """Returns the dtype of the first operand, which holds activations."""
    aval: Any = context.avals_in[0]
    return aval.dtype


def transposed(cotangent: jax.Array, *operands: Any, relu: bool) -> list[Any]:
    """Returns the cotangents of `tangent_p`'s operands: those of the tangents."""
    linear, fixed = operands[:-6], operands[-6:]
    given = varying_alike(cotangent, *fixed)
    of_x, of_scale, of_bias, *rest = gradient(*given, relu=relu, added=len(linear) == 4)
    # One sum over the devices, not two.
    found = [of_x, *jnp.stack([of_scale, of_bias], 1).sum(0), *rest]
    wanted = [
        value if ad.is_undefined_primal(operand) else None
        for value, operand in zip(found, linear, strict=True)
    ]
    return [*wanted, *(None for _ in fixed)]


norm_p.multiple_results = slopes_p.multiple_results = gradient_p.multiple_results = True
define_call(moments_p, plain_moments, native_moments)
define_call(norm_p, plain_norm, native_norm)
define_call(tangent_p, plain_tangent)
define_call(slopes_p, plain_slopes, native_slopes)
define_call(gradient_p, plain_gradient, native_gradient)
ad.primitive_transposes[tangent_p] = transposed
