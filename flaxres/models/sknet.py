"""Selective-kernel networks (Li et al. 2019, "Selective kernel networks"), in timm's form."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from flaxres.models.attention import rounded
from flaxres.models.blocks import EXPANSION, ResidualBlock
from flaxres.models.layers import ConvNorm, norm_relu
from flaxres.models.resnet import WITHOUT_VARIANTS, ResNet

PATHS = 2


class PathAttention(nn.Module):
    """The weights of the paths by channel (Li et al. 2019, eq. 3 to 5).

    Call: maps `(N, H, W, paths, C)` -> weights `(N, 1, 1, paths, C)`, which add up to one.
    """

    inner: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(
        self, maps: Float[Array, "n h w paths c"], train: bool
    ) -> Float[Array, "n 1 1 paths c"]:
        paths, channels = maps.shape[3:]
        z = maps.sum(3).mean((1, 2), keepdims=True)
        z = self.conv(self.inner, kernel_size=1, name="fc_reduce")(z)
        z = norm_relu(self.norm(name="bn"), z, train)
        z = self.conv(paths * channels, kernel_size=1, name="fc_select")(z)
        return nn.softmax(z.reshape(*z.shape[:3], paths, channels), axis=3)


class SelectiveKernel(nn.Module):
    """A 3x3 convolution beside a dilated one, and their sum with weights by channel.

    Li et al. 2019, section 3.1. The second kernel covers 5x5 pixels.

    Attributes:
      features: channels of the result.
      stride, groups, dilation: of the convolutions; the second one dilates twice as far.
      ratio, divisor: width of the attention, as a share of `features`, rounded to a multiple.
      split: give each convolution half of the input's channels, and not all of them.
      conv, norm: layers with their dtypes bound.
    """

    features: int
    stride: int
    groups: int
    dilation: int
    ratio: float
    divisor: int
    split: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 k"]:
        inputs = jnp.split(x, PATHS, axis=-1) if self.split else [x] * PATHS
        path = functools.partial(
            ConvNorm,
            self.features,
            self.conv,
            self.norm,
            kernel_size=3,
            stride=self.stride,
            groups=self.groups,
        )
        maps = jnp.stack(
            [
                path(dilation=(i + 1) * self.dilation, name=f"paths_{i}")(part, train)
                for i, part in enumerate(inputs)
            ],
            axis=3,
        )
        inner = rounded(self.features * self.ratio, self.divisor, share=0.9)
        weights = PathAttention(inner, self.conv, self.norm, name="attn")(maps, train)
        return (maps * weights).sum(3)


class SelectiveKernelBlock(ResidualBlock):
    """A residual block whose first 3x3 is a `SelectiveKernel`; its layers have timm's names.

    Attributes:
      ratio, divisor, split: of the selective kernel.
    """

    ratio: float = 1 / 16
    divisor: int = 8
    split: bool = True

    def branch_of(
        self, x: Float[Array, "n h w c"], train: bool
    ) -> tuple[Float[Array, "n h2 w2 k"], None]:
        layer = functools.partial(ConvNorm, conv=self.conv, norm=self.norm)
        selective = functools.partial(
            SelectiveKernel,
            stride=self.stride,
            groups=self.cardinality,
            dilation=self.dilation[0],
            ratio=self.ratio,
            divisor=self.divisor,
            split=self.split,
            conv=self.conv,
            norm=self.norm,
        )
        if self.kind == "basic":
            y = selective(self.width, name="conv1")(x, train)
            last = functools.partial(layer, kernel_size=3, dilation=self.dilation[1], name="conv2")
        else:
            width = self.width * self.base_width // 64 * self.cardinality
            y = layer(width, name="conv1")(x, train)
            y = selective(width, name="conv2")(y, train)
            last = functools.partial(layer, name="conv3")
        return last(EXPANSION[self.kind] * self.width, activation=None)(y, train), None


class SKNet(ResNet):
    """A residual network of `SelectiveKernelBlock`.

    It also has the attributes of `flaxres.ResNet`, without `anti_alias`, `v1`, `reduction` and
    `pruned`. The last norm of a block starts with scales of one, as in timm.

    Attributes:
      kernel_ratio, kernel_divisor: width of the attention between the kernels, as a share of the
        channels, rounded to a multiple.
      split: give each kernel half of the input's channels, as timm's networks do; the paper's get
        all of them.

    Called as `ResNet` is. In training, batch norms take statistics over the pooled maps too: a
    group of `bn_group` needs two images.

    Raises:
      InputError: as `ResNet`; or one of the attributes above is set.

    Examples:
      >>> import flaxres
      >>> flaxres.create_model("skresnext50_32x4d").split
      False
    """

    BEYOND_LEAVES: ClassVar = (*ResNet.BEYOND_LEAVES, "split")

    kernel_ratio: float = 1 / 16
    kernel_divisor: int = 8
    split: bool = True

    def choices(self) -> dict[str, tuple[Any, ...]]:
        return super().choices() | WITHOUT_VARIANTS

    def residual_block(self) -> Callable[..., ResidualBlock]:
        return functools.partial(
            SelectiveKernelBlock,
            ratio=self.kernel_ratio,
            divisor=self.kernel_divisor,
            split=self.split,
        )
