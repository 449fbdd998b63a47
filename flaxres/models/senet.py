"""SE-ResNets of the weights that were converted from the authors' Caffe (Hu et al. 2018).

timm calls them legacy. They differ from `flaxres.ResNet` with `attention='se'` in names, in the
place of the stride, in the stem's pooling and in the widths of squeeze and excitation.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from flaxres.models.activations import relu
from flaxres.models.attention import SqueezeExcite
from flaxres.models.blocks import ResidualBlock
from flaxres.models.layers import norm_relu, norm_relu_pool
from flaxres.models.resnet import WITHOUT_VARIANTS, ResNet
from flaxres.ops.pool import max_pool


class LegacyBlock(ResidualBlock):
    """A residual block with squeeze and excitation named `se_module`.

    A basic one has a ReLU before it. So the scale of its last norm starts at one: from zero that
    ReLU has no gradient.
    """

    def attended(self, y: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        if self.kind == "basic":
            y = relu(y)
        return y if self.attention is None else self.attention(name="se_module")(y)

    def last_norm(self, name: str) -> nn.Module:
        return self.norm(name=name) if self.kind == "basic" else super().last_norm(name)


def pool_beyond_the_end(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Computes the maxima over 3x3 windows at stride 2, the first of them at the first pixel.

    An even side ends in a window of two pixels, as in Caffe and with PyTorch's `ceil_mode`.
    """
    edges = [(0, 1 - side % 2) for side in x.shape[1:3]]
    x = jnp.pad(x, ((0, 0), *edges, (0, 0)), constant_values=-math.inf)
    return max_pool(x, padding=0)


class LegacyStem(nn.Module):
    """The stem's convolutions and its pooling; returns the map before the pooling, and after."""

    widths: tuple[int, ...]
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool, features: bool
    ) -> tuple[Float[Array, "n h w k"] | None, Float[Array, "n h2 w2 k"]]:
        size = 7 if len(self.widths) == 1 else 3
        for i, width in enumerate(self.widths, 1):
            x = norm_relu(self.norm(name=f"bn{i - 1}"), x, train) if i > 1 else x
            x = self.conv(width, kernel_size=size, stride=1 if i > 1 else 2, name=f"conv{i}")(x)
        norm = self.norm(name=f"bn{len(self.widths)}")
        return norm_relu_pool(norm, x, train, pool_beyond_the_end, features)


class LegacySENet(ResNet):
    """An SE-ResNet, SE-ResNeXt or SENet-154 as in Caffe. Layers have timm's names.

    It also has the attributes of `flaxres.ResNet`, without `anti_alias`, `pruned` and
    `stem_convolution`; `attention` is 'se', and `stem` is 'standard' or 'deep'.

    Called as `ResNet` is.

    Raises:
      InputError: as `ResNet`; or one of the attributes above is set.

    Examples:
      >>> import flaxres
      >>> model = flaxres.create_model("legacy_seresnet50", num_classes=10)
      >>> model.v1, model.head_name
      (True, 'last_linear')
    """

    attention: str | None = "se"
    head_name: str = "last_linear"

    def choices(self) -> dict[str, tuple[Any, ...]]:
        without = {name: WITHOUT_VARIANTS[name] for name in ("anti_alias", "pruned")}
        own = {"attention": ("se",), "stem": ("standard", "deep"), "stem_convolution": (False,)}
        return super().choices() | without | own

    def residual_block(self) -> Callable[..., ResidualBlock]:
        return LegacyBlock

    def attention_module(
        self, conv: Callable[..., nn.Module], channels: int
    ) -> Callable[..., nn.Module] | None:
        return functools.partial(SqueezeExcite, conv, width=max(1, int(channels * self.se_ratio)))

    def stem_maps(
        self,
        x: jax.Array,
        train: bool,
        conv: Callable[..., nn.Module],
        norm: Callable[..., nn.Module],
        features: bool,
    ) -> tuple[jax.Array | None, jax.Array]:
        deep = (self.stem_width, self.stem_width, 2 * self.stem_width)
        widths = deep if self.stem == "deep" else (self.stem_width,)
        maps: tuple[jax.Array | None, jax.Array] = LegacyStem(widths, conv, norm, name="layer0")(
            x, train, features
        )
        return maps

    def stem_extent(self, side: int) -> int:
        return -(-side // 2) // 2
