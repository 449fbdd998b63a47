"""Norms by groups of channels, which need no statistics of the batch."""

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer
from jax import lax
from jaxtyping import Array, Float

from flaxres.errors import InputError
from flaxres.ops.norm import at_least_float32, by_channel


def in_groups(x: Float[Array, "n h w c"], groups: int) -> Float[Array, "n h w groups k"]:
    """Splits the channels into groups.

    Raises:
      InputError: `groups` does not divide the channels.
    """
    channels = x.shape[-1]
    if channels % groups:
        raise InputError(
            f"channels (={channels}) must be divisible by the {groups} groups of the norm"
        )
    return x.reshape(*x.shape[:-1], groups, channels // groups)


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) over groups of channels; needs no batch statistics.

    Call: `(N, H, W, C)` -> the same shape in `dtype`; `use_running_average` has no effect.

    Raises:
      InputError: `groups` does not divide the channels.
    """

    groups: int = 32
    epsilon: float = 1e-5
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    scale_init: Initializer = nn.initializers.ones_init()

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], use_running_average: bool
    ) -> Float[Array, "n h w c"]:
        del use_running_average
        channels, wide = x.shape[-1], at_least_float32(self.param_dtype)
        grouped = in_groups(x, self.groups).astype(wide)
        scale = self.param("scale", self.scale_init, (channels,), self.param_dtype).astype(wide)
        bias_init = nn.initializers.zeros_init()
        bias = self.param("bias", bias_init, (channels,), self.param_dtype).astype(wide)
        mean = grouped.mean((1, 2, 4), keepdims=True)
        var = grouped.var((1, 2, 4), keepdims=True)
        normal = ((grouped - mean) * lax.rsqrt(var + self.epsilon)).reshape(x.shape)
        return (normal * by_channel(scale, x) + by_channel(bias, x)).astype(self.dtype)


class EvoNorm(nn.Module):
    """EvoNorm-S0, a norm that is its own activation (Liu et al. 2020, table 2).

    Computes `x * sigmoid(v * x) / std * scale + bias`. The standard deviation is that of a group
    of channels, as in `GroupNorm`; no mean is subtracted.

    Call: `(N, H, W, C)` -> the same shape in `dtype`; `use_running_average` has no effect.

    Raises:
      InputError: `groups` does not divide the channels.
    """

    groups: int = 32
    epsilon: float = 1e-5
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], use_running_average: bool
    ) -> Float[Array, "n h w c"]:
        del use_running_average
        wide = at_least_float32(self.param_dtype)
        var = in_groups(x, self.groups).astype(wide).var((1, 2, 4), keepdims=True)
        ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
        scale, bias, v = (
            by_channel(self.param(name, init, x.shape[-1:], self.param_dtype).astype(wide), x)
            for name, init in (("scale", ones), ("bias", zeros), ("v", ones))
        )
        x = x.astype(wide)
        swish = in_groups(x * nn.sigmoid(v * x), self.groups)
        normal = (swish * lax.rsqrt(var + self.epsilon)).reshape(x.shape)
        return (normal * scale + bias).astype(self.dtype)
