"""Res2Net (Gao et al. 2019, "Res2Net: a new multi-scale backbone architecture")."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from flaxres.models.blocks import EXPANSION, ResidualBlock
from flaxres.models.layers import norm_relu
from flaxres.models.pooling import average_neighbours
from flaxres.models.resnet import WITHOUT_VARIANTS, ResNet


class MultiScaleBlock(ResidualBlock):
    """A bottleneck whose 3x3 works on groups of channels in turn (Gao et al. 2019, section 3.1).

    Each group is added to the result of the one before, eq. 1. The last one passes without a
    convolution. Where the block changes the shape, no group is added to another and the last one
    is averaged, as in the authors' code.

    Attributes:
      scale: number of groups; the 3x3 of each is `width * base_width / 64` wide.
    """

    scale: int = 4

    def branch_of(
        self, x: Float[Array, "n h w c"], train: bool
    ) -> tuple[Float[Array, "n h2 w2 k"], nn.Module]:
        width = self.width * self.base_width // 64 * self.cardinality
        features = EXPANSION[self.kind] * self.width
        apart = self.changes_shape(x, features)
        y = self.conv(self.scale * width, kernel_size=1, name="conv1")(x)
        groups = jnp.split(norm_relu(self.norm(name="bn1"), y, train), self.scale, axis=-1)
        convolve = functools.partial(
            self.conv,
            width,
            kernel_size=3,
            stride=self.stride,
            groups=self.cardinality,
            dilation=self.dilation[0],
        )
        results: list[jax.Array] = []
        for i, group in enumerate(groups[:-1] or groups):
            y = group if apart or not i else results[-1] + group
            y = convolve(name=f"convs_{i}")(y)
            results.append(norm_relu(self.norm(name=f"bns_{i}"), y, train))
        if self.scale > 1:
            results.append(average_neighbours(groups[-1], self.stride) if apart else groups[-1])
        y = self.conv(features, kernel_size=1, name="conv3")(jnp.concatenate(results, axis=-1))
        return y, self.last_norm("bn3")


class Res2Net(ResNet):
    """A residual network of `MultiScaleBlock`.

    It also has the attributes of `flaxres.ResNet`, without `anti_alias`, `v1`, `reduction` and
    `pruned`; `block` is 'bottleneck'.

    Attributes:
      scale: number of groups of channels in each block.

    Called as `ResNet` is.

    Raises:
      InputError: as `ResNet`; or one of the attributes above is set.

    Examples:
      >>> import flaxres
      >>> model = flaxres.create_model("res2net50_26w_4s", num_classes=10)
      >>> model.scale, model.base_width
      (4, 26)
    """

    scale: int = 4

    def choices(self) -> dict[str, tuple[Any, ...]]:
        return super().choices() | WITHOUT_VARIANTS | {"block": ("bottleneck",)}

    def residual_block(self) -> Callable[..., ResidualBlock]:
        return functools.partial(MultiScaleBlock, scale=self.scale)
