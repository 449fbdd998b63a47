"""Dropout and stochastic depth. Their draws do not depend on JAX's default float type."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from flaxres.errors import InputError


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014).

    `flax.linen.Dropout` draws other numbers where `jax_enable_x64` is set. Without it, the two
    agree to the bit.

    Attributes:
      rate: probability of a zero; the rest is divided by `1 - rate`.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "..."], train: bool) -> Float[Array, "..."]:
        if not train or not self.rate:
            return x
        if self.rate == 1:  # nothing is kept, and the quotient would have no gradient
            return jnp.zeros_like(x)
        keep = 1 - self.rate
        kept = jax.random.bernoulli(_dropout_key(self), jnp.float32(keep), x.shape)
        return jnp.where(kept, x / keep, jnp.zeros((), x.dtype))


def drop_path(
    module: nn.Module, x: Float[Array, "n h w c"], rate: Any, train: bool
) -> Float[Array, "n h w c"]:
    """Drops the whole branch of an image with probability `rate` (Huang et al. 2016, eq. 5).

    Branches that are not dropped are divided by `1 - rate`. Nothing is dropped outside training.
    """
    if not train:
        return x
    keep = 1 - jnp.asarray(rate, jnp.float32)
    kept = jax.random.bernoulli(_dropout_key(module), keep, (x.shape[0], 1, 1, 1))
    divisor = jnp.where(keep > 0, keep, 1)  # where nothing is kept, the gradient is 0
    return jnp.where(kept, x / divisor.astype(x.dtype), jnp.zeros((), x.dtype))


def _dropout_key(module: nn.Module) -> Key[Array, ""]:
    if not module.has_rng("dropout") and not module.is_initializing():
        raise InputError(
            "train=True with dropout or stochastic depth draws random numbers: give "
            'model.apply(..., train=True, rngs={"dropout": key})'
        )
    return module.make_rng("dropout")
