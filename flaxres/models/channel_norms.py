"""Norms of ConvNeXts: over the channels of a pixel, and over the pixels of a channel."""

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jax import lax
from jaxtyping import Array, Float

from flaxres.ops.norm import at_least_float32, by_channel


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016) over the channels of each pixel, in float32 or wider.

    Call: `(..., C)` -> the same shape in `dtype`.
    """

    epsilon: float = 1e-6
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*shape c"]) -> Float[Array, "*shape c"]:
        wide = at_least_float32(self.param_dtype)
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:], self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), x.shape[-1:], self.param_dtype)
        y = x.astype(wide)
        mean, var = y.mean(-1, keepdims=True), y.var(-1, keepdims=True)
        y = (y - mean) * lax.rsqrt(var + self.epsilon)
        return (y * by_channel(scale.astype(wide), y) + by_channel(bias.astype(wide), y)).astype(
            self.dtype
        )


class SimpleNorm(nn.Module):
    """Divides by the standard deviation over the channels of each pixel, in float32 or wider.

    No mean is subtracted and there is no bias; the variance is the unbiased one. It is timm's, in
    networks named `rms`: `findings/timm_zepto_rms_norm.sh`.

    Call: `(..., C)` -> the same shape in `dtype`.
    """

    epsilon: float = 1e-6
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*shape c"]) -> Float[Array, "*shape c"]:
        wide = at_least_float32(self.param_dtype)
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:], self.param_dtype)
        y = x.astype(wide)
        y = y * lax.rsqrt(y.var(-1, keepdims=True, ddof=1) + self.epsilon)
        return (y * by_channel(scale.astype(wide), y)).astype(self.dtype)


class GlobalResponseNorm(nn.Module):
    """Global response normalisation (Woo et al. 2023, section 3.2, algorithm 1).

    A channel's weight is its norm over all pixels, divided by the mean of these norms over the
    channels.

    Call: `(N, H, W, C)` -> the same shape in `dtype`.
    """

    epsilon: float = 1e-6
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        wide = at_least_float32(self.param_dtype)
        zeros = nn.initializers.zeros_init()
        scale, bias = (
            by_channel(self.param(name, zeros, x.shape[-1:], self.param_dtype).astype(wide), x)
            for name in ("scale", "bias")
        )
        y = x.astype(wide)
        squares = jnp.square(y).sum((1, 2), keepdims=True)
        # The root has no gradient at zero.
        positive = squares > 0
        norms = jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)
        weights = norms / (norms.mean(-1, keepdims=True) + self.epsilon)
        return (y + y * weights * scale + bias).astype(self.dtype)
