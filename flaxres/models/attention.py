"""Attention over channels: each image weighs its channels by their means over all pixels."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float

from flaxres.models.activations import ACTIVATIONS


def rounded(width: float, divisor: int = 8, least: int = 0, share: float = 0.0) -> int:
    """Returns a width rounded to a multiple of `divisor`.

    Args:
      width: the width.
      divisor: the result is a multiple of it.
      least: smallest result; 0 stands for `divisor`.
      share: a result below this share of `width` is raised to the next multiple.

    Examples:
      >>> rounded(11.9), rounded(12), rounded(3), rounded(3, least=32), rounded(11.9, share=0.9)
      (8, 16, 8, 32, 16)
    """
    result = max(least or divisor, int(width + divisor / 2) // divisor * divisor)
    return result + divisor if result < share * width else result


class SqueezeExcite(nn.Module):
    """Squeeze and excitation (Hu et al. 2018, section 3), rounded as timm does.

    Attributes:
      conv: convolution with its dtypes bound.
      ratio: inner width as a share of the channels; the result is rounded to a multiple of 8.
      width: inner width in place of `ratio`.
      activation: name of that between the two layers.
    """

    conv: Callable[..., nn.Module]
    ratio: float = 1 / 16
    width: int | None = None
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 k"]:
        channels = x.shape[-1]
        squeezed = self.width or rounded(channels * self.ratio)
        y = x.mean((1, 2), keepdims=True)
        y = self.conv(squeezed, kernel_size=1, use_bias=True, name="fc1")(y)
        # Means are few: a hint to keep them, as after other ReLUs, would be worth nothing.
        y = nn.relu(y) if self.activation == "relu" else ACTIVATIONS[self.activation](y)
        return x * nn.sigmoid(self.conv(channels, kernel_size=1, use_bias=True, name="fc2")(y))


class EfficientChannelAttention(nn.Module):
    """Efficient channel attention (Wang et al. 2020, section 3.2).

    A 1-D convolution over the globally pooled channels gives each channel's weight. Its size
    follows from `channels`, by default those of the input; a pruned network has fewer.
    """

    channels: int | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 k"]:
        size = int(abs(math.log2(self.channels or x.shape[-1]) + 1) / 2)
        size = max(size if size % 2 else size + 1, 3)
        conv = nn.Conv(
            1,
            (size,),
            padding=size // 2,
            use_bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="conv",
        )
        y = conv(x.mean((1, 2))[..., None])
        return x * nn.sigmoid(y[:, None, None, :, 0])
