"""Normalisation by given statistics, alone or with a ReLU, and the statistics of a batch."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax import lax
from jaxtyping import Array, Float

from flaxres.ops import kept

Pool = Callable[[jax.Array], jax.Array]
# Called with the dtype of the result, activations, mean, multiplier and bias: see `normalised`.
Form = Callable[[Dtype, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def mean_and_variance(
    grouped: Float[Array, "groups images h w c"], wide: Dtype, axis_name: str | None
) -> tuple[Float[Array, "groups c"], Float[Array, "groups c"]]:
    """Computes each group's mean and biased variance in one pass over the activation.

    Args:
      grouped: activations `(groups, images, H, W, C)`.
      wide: dtype of the statistics.
      axis_name: mapped axis over which to average them, or None.

    Returns:
      Mean and variance, each `(groups, C)`. The variance is `E[x^2] - E[x]^2`, at least zero.
    """
    values = grouped.astype(wide)
    mean, square = values.mean((1, 2, 3)), jnp.square(values).mean((1, 2, 3))
    if axis_name is not None:
        mean, square = lax.pmean((mean, square), axis_name)
    return mean, jnp.maximum(square - jnp.square(mean), 0)


def normalised(
    dtype: Dtype, x: jax.Array, mean: jax.Array, multiplier: jax.Array, bias: jax.Array
) -> jax.Array:
    """Computes `(x - mean) * multiplier + bias` in the multiplier's dtype, and casts to `dtype`."""
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

    A norm is monotone in each channel, so pooling before it gives the same result and leaves it
    fewer pixels. Channels of negative scale are negated on both sides of the pooling, which would
    else find their minimum. Only the statistics need all pixels.

    Args:
      pool: max pooling of `(N, H, W, C)` that pads by -inf or not at all.
    """

    def form(
        dtype: Dtype, x: jax.Array, mean: jax.Array, multiplier: jax.Array, bias: jax.Array
    ) -> jax.Array:
        sign = jnp.where(multiplier < 0, -1, 1)
        rising = x * sign.astype(x.dtype)
        pooled = pool(rising.reshape(-1, *x.shape[-3:]))
        pooled = pooled.reshape(*x.shape[:-3], *pooled.shape[1:])
        sign = sign.astype(multiplier.dtype)
        return normalised_and_rectified(dtype, pooled, mean * sign, multiplier * sign, bias)

    return form
