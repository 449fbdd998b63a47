"""Random numbers of other distributions than the uniform one, by tables of their quantiles.

XLA rounds an exponential in one way or another, depending on what it fuses it with. When mixup drew
its shares by `jax.random.beta`, a fifth of them differed between 1 and 2 devices. Here the host
computes a table of equally likely values, and the device looks one up. So each key gives the same
number, to the bit, on any number of devices and any kind of them.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jaxtyping import Array, Float

from flaxres.data.operations import uniforms

POINTS = 2**14
Table = Float[np.ndarray, " points"]


def _middles() -> Table:
    """Returns the middles of `POINTS` equal parts of [0, 1]."""
    return (np.arange(POINTS) + 0.5) / POINTS


@functools.cache
def beta(alpha: float) -> Table:
    """Returns quantiles of the symmetric beta distribution.

    Args:
      alpha: both of its parameters; above 0.

    Examples:
      >>> round(float(beta(0.2).mean()), 6), round(float(beta(1.0)[POINTS // 4]), 3)
      (0.5, 0.25)
    """
    from scipy import special  # a tenth of a second, for those who mix

    table: Table = special.betaincinv(alpha, alpha, _middles())
    return table


@functools.cache
def normal() -> Table:
    """Returns quantiles of the standard normal distribution.

    Examples:
      >>> round(float(normal().std()), 3)
      1.0
    """
    from scipy import special

    table: Table = special.ndtri(_middles())
    return table


@functools.cache
def log_uniform(low: float, high: float) -> Table:
    """Returns quantiles of a number whose logarithm is uniform.

    Args:
      low, high: bounds, above 0.

    Examples:
      >>> table = log_uniform(0.5, 2.0)
      >>> round(float(np.median(table)), 4), bool((table > 0.5).all())
      (1.0, True)
    """
    return np.exp(math.log(low) + math.log(high / low) * _middles())


def draw(
    keys: Array, table: Table, *shape: int, dtype: Dtype = jnp.float32
) -> Float[Array, "n ..."]:
    """Draws equally likely values of a table.

    Args:
      keys: (n,) keys.
      table: values.
      *shape: shape of the numbers of each key.
      dtype: of the result.

    Examples:
      >>> import jax
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> draw(keys, np.array([7.0]), 2).tolist()
      [[7.0, 7.0], [7.0, 7.0], [7.0, 7.0]]
    """
    place = (uniforms(keys, *shape) * len(table)).astype(jnp.int32)
    return jnp.asarray(table, dtype)[place]
