"""Normalisation by given statistics, alone or with a ReLU, and the statistics of a batch."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jax import lax
from jaxtyping import Array, Float

from flaxres.ops import kept

Pool = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Form:
    """The operation by which a norm applies its statistics, alone or with what follows the norm.

    Attributes:
      name: the operation in words; Flax's tables of a network show it.
      apply: called as `normalised`.
      rising: negate channels of negative scale first, so that the norm rises with its input.
      shortcut: activations that `apply` adds.
    """

    name: str
    apply: Callable[[Dtype, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
    rising: bool = False
    shortcut: jax.Array | None = None

    def __repr__(self) -> str:
        return self.name


def at_least_float32(dtype: Dtype) -> Dtype:
    """Returns the dtype of statistics of values in `dtype`: float32, or a wider one.

    `jnp.promote_types` would refuse bfloat16 under `jax_numpy_dtype_promotion='strict'`.
    """
    return np.promote_types(np.float32, jnp.dtype(dtype))


def by_channel(values: Float[Array, "... c"], x: Float[Array, "... c"]) -> Float[Array, "... c"]:
    """Gives `values` leading axes of length 1, up to the number of axes of `x`.

    NumPy's broadcasting would add them too, but not under `jax_numpy_rank_promotion='raise'`.
    """
    return values.reshape((1,) * (x.ndim - values.ndim) + values.shape)


def shifted_moments(
    grouped: Float[Array, "groups images h w c"],
    shift: Float[Array, " c"],
    axis_name: str | None,
) -> tuple[Float[Array, "groups c"], Float[Array, "groups c"]]:
    """Computes each group's mean, less a shift, and its biased variance in one pass.

    The variance is `E[(x - s)^2] - E[x - s]^2`, whatever the shift s is. The closer s is to the
    mean, the fewer digits are lost to rounding (Chan, Golub & LeVeque 1983, "Algorithms for
    computing the sample variance: analysis and recommendations").

    Args:
      grouped: activations `(groups, images, H, W, C)`.
      shift: an estimate of the mean, in the dtype of the statistics.
      axis_name: mapped axis over which to average the statistics, or None.

    Returns:
      `E[x - s]` and the variance, at least zero; each `(groups, C)`.
    """
    values = grouped.astype(shift.dtype) - by_channel(shift, grouped)
    offset, square = values.mean((1, 2, 3)), jnp.square(values).mean((1, 2, 3))
    if axis_name is not None:
        offset, square = lax.pmean((offset, square), axis_name)
    return offset, jnp.maximum(square - jnp.square(offset), 0)


def normalised(
    dtype: Dtype, x: jax.Array, mean: jax.Array, multiplier: jax.Array, bias: jax.Array
) -> jax.Array:
    """Computes `(x - mean) * multiplier + bias` in the multiplier's dtype, and casts to `dtype`.

    Within `kept.jax_operations_only` it is one product and one sum. ONNX Runtime folds these into
    the convolution before them, but not a subtraction (`findings/onnxruntime_conv_sub.sh`).
    """
    if kept.jax_only.get():
        product = x.astype(multiplier.dtype) * multiplier
        return (product + (bias - mean * multiplier)).astype(dtype)
    return ((x.astype(multiplier.dtype) - mean) * multiplier + bias).astype(dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def normalised_and_rectified(
    dtype: Dtype, x: jax.Array, mean: jax.Array, multiplier: jax.Array, bias: jax.Array
) -> jax.Array:
    """Computes `relu(normalised(...))` with a custom derivative.

    The custom gradient sums over the pixels twice. JAX's own gradient needs a third sum, for the
    mean, although that sum is a multiple of the bias's. The tangent of `x` and the tangent of the
    other operands pass through separate gates: see `kept.gate`.
    """
    return kept.relu(normalised(dtype, x, mean, multiplier, bias))


@normalised_and_rectified.defjvp
def normalised_and_rectified_jvp(
    dtype: Dtype, primals: Sequence[jax.Array], tangents: Sequence[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    x, mean, multiplier, _ = primals
    x_dot, mean_dot, multiplier_dot, bias_dot = tangents
    z, y = normalised(dtype, *primals), normalised_and_rectified(dtype, *primals)
    wide = multiplier.dtype
    of_x = (x_dot.astype(wide) * multiplier).astype(dtype)
    of_rest = (x.astype(wide) - mean) * multiplier_dot + (bias_dot - mean_dot * multiplier)
    of_rest = of_rest.astype(dtype)
    gated_x = jnp.where(z > 0, of_x, jnp.zeros((), dtype))
    return y, gated_x + kept.gate(of_rest, z, y, apart=True)


def max_pooled_first(pool: Pool) -> Form:
    """Returns a form that computes `pool(relu(normalised(...)))` and pools first.

    A norm that rises with its input and a ReLU are monotone, so pooling before them gives the same
    result and leaves them fewer pixels. Only the statistics need all pixels.

    Args:
      pool: max pooling of `(N, H, W, C)` that pads by -inf or not at all.
    """

    def apply(
        dtype: Dtype, x: jax.Array, mean: jax.Array, multiplier: jax.Array, bias: jax.Array
    ) -> jax.Array:
        pooled = pool(x.reshape(-1, *x.shape[-3:]))
        pooled = pooled.reshape(*x.shape[:-3], *pooled.shape[1:])
        return normalised_and_rectified(dtype, pooled, mean, multiplier, bias)

    return Form("norm, ReLU, max pooling", apply, rising=True)


def summed_and_rectified(shortcut: jax.Array) -> Form:
    """Returns a form that computes `relu(normalised(...) + shortcut)`."""

    def apply(
        dtype: Dtype, x: jax.Array, mean: jax.Array, multiplier: jax.Array, bias: jax.Array
    ) -> jax.Array:
        return kept.relu(normalised(dtype, x, mean, multiplier, bias) + shortcut.reshape(x.shape))

    return Form("norm, sum, ReLU", apply, shortcut=shortcut)


NORMALISED = Form("norm", normalised)
NORMALISED_AND_RECTIFIED = Form("norm, ReLU", normalised_and_rectified)
