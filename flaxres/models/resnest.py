"""ResNeSt (Zhang et al. 2020, "ResNeSt: split-attention networks")."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from flaxres.models.attention import rounded
from flaxres.models.blocks import EXPANSION, ResidualBlock
from flaxres.models.layers import norm_relu
from flaxres.models.pooling import average_neighbours
from flaxres.models.resnet import WITHOUT_VARIANTS, ResNet


class SplitAttention(nn.Module):
    """A 3x3 convolution into `radix` maps, and their sum with weights by channel.

    Zhang et al. 2020, section 3.1. The weights of an image follow from the means of the sum of its
    maps; over the maps they are a softmax, or a sigmoid for one map. Layers have timm's names.

    Attributes:
      features: channels of the result.
      stride, groups, dilation: of the convolution; `groups` is the paper's cardinality.
      radix: number of maps.
      conv, norm: layers with their dtypes bound.
    """

    features: int
    stride: int
    groups: int
    dilation: int
    radix: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 k"]:
        inner = rounded(x.shape[-1] * self.radix / 4, least=32, share=0.9)
        y = self.conv(
            self.radix * self.features,
            kernel_size=3,
            stride=self.stride,
            groups=self.radix * self.groups,
            dilation=self.dilation,
            name="conv",
        )(x)
        y = norm_relu(self.norm(name="bn0"), y, train)
        maps = y.reshape(*y.shape[:3], self.radix, self.features)
        dense = functools.partial(self.conv, kernel_size=1, groups=self.groups, use_bias=True)
        z = dense(inner, name="fc1")(maps.sum(3).mean((1, 2), keepdims=True))
        z = norm_relu(self.norm(name="bn1"), z, train)
        z = dense(self.radix * self.features, name="fc2")(z)
        if self.radix == 1:
            result: jax.Array = y * nn.sigmoid(z)
            return result
        by_map = z.reshape(*z.shape[:3], self.groups, self.radix, self.features // self.groups)
        weights = nn.softmax(by_map, axis=4).swapaxes(3, 4)
        return (maps * weights.reshape(*z.shape[:3], self.radix, self.features)).sum(3)


class SplitAttentionBlock(ResidualBlock):
    """A bottleneck whose 3x3 is a `SplitAttention`.

    Attributes:
      radix: of the split attention.
      average_first: a block that strides averages before its 3x3, and not after it.
    """

    radix: int = 2
    average_first: bool = False

    def branch_of(
        self, x: Float[Array, "n h w c"], train: bool
    ) -> tuple[Float[Array, "n h2 w2 k"], nn.Module]:
        width = self.width * self.base_width // 64 * self.cardinality
        averaged = self.stride != 1
        y = norm_relu(
            self.norm(name="bn1"), self.conv(width, kernel_size=1, name="conv1")(x), train
        )
        if averaged and self.average_first:
            y = average_neighbours(y, self.stride)
        attention = SplitAttention(
            width,
            1,
            self.cardinality,
            self.dilation[0],
            self.radix,
            self.conv,
            self.norm,
            name="conv2",
        )
        y = attention(y, train)
        if averaged and not self.average_first:
            y = average_neighbours(y, self.stride)
        y = self.conv(EXPANSION[self.kind] * self.width, kernel_size=1, name="conv3")(y)
        return y, self.last_norm("bn3")


class ResNeSt(ResNet):
    """A residual network of `SplitAttentionBlock`.

    It also has the attributes of `flaxres.ResNet`, without `anti_alias`, `attention`, `v1`,
    `reduction` and `pruned`; `block` is 'bottleneck'.

    Attributes:
      radix: number of maps of each split attention.
      average_first: blocks that stride average before their 3x3, and not after it.

    Called as `ResNet` is. In training, batch norms take statistics over the pooled maps too: a
    group of `bn_group` needs two images.

    Raises:
      InputError: as `ResNet`; or one of the attributes above is set.

    Examples:
      >>> import flaxres
      >>> flaxres.create_model("resnest50d_4s2x40d").radix
      4
    """

    BEYOND_LEAVES: ClassVar = (*ResNet.BEYOND_LEAVES, "average_first")

    radix: int = 2
    average_first: bool = False

    def choices(self) -> dict[str, tuple[Any, ...]]:
        fixed = {"block": ("bottleneck",), "attention": (None,)}
        return super().choices() | WITHOUT_VARIANTS | fixed

    def residual_block(self) -> Callable[..., ResidualBlock]:
        return functools.partial(
            SplitAttentionBlock, radix=self.radix, average_first=self.average_first
        )
