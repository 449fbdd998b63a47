"""ResNet-9, from the races for the fastest training on CIFAR-10.

Page 2018, "How to train your ResNet", part 4.
"""

import functools
from collections.abc import Callable
from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float

from flaxres.errors import InputError
from flaxres.models.blocks import ResidualBlock
from flaxres.models.layers import norm_relu
from flaxres.models.network import Network
from flaxres.models.stage import Stage
from flaxres.ops.pool import max_pool


class PooledConvolution(nn.Module):
    """A 3x3 convolution, 2x2 max pooling, a norm and a ReLU.

    `(N, H, W, C)` -> `(N, H // 2, W // 2, width)`. The pooling comes before the norm, which then
    reads a quarter of the pixels (Jordan 2024, section 3.1).
    """

    width: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool, drop_rate: Any = 0.0
    ) -> Float[Array, "n h2 w2 k"]:
        del drop_rate  # without a shortcut this block can't be dropped
        x = self.conv(self.width, kernel_size=3, name="conv1")(x)
        x = max_pool(x, size=2, stride=2, padding=0)
        return norm_relu(self.norm(name="bn1"), x, train)


class ResNet9(Network):
    """A shallow and wide residual network for small images.

    It learns more in the first minutes than the deep and narrow networks of He et al. 2016. Each
    stage is a convolution and a max pooling, followed by residual blocks without strides.
    Differences from Page's network: pooling comes before the norm; a block is He et al.'s, with the
    ReLU after the sum and the last norm's scale initialised to zero; global pooling is an average;
    logits are not scaled. Layers have the names of `ResNet`: `conv1`, `layer1.0.conv1`, ...

    It also has the attributes of `flaxres.models.network.Network`, with `num_classes` 10.

    Attributes:
      depths: blocks in each stage. The first is the pooled convolution, the others are residual
        blocks of two 3x3 convolutions. Stochastic depth applies to the residual blocks.
      widths: width of each stage.
      stem_width: width of the stem's 3x3 convolution.

    Called as `ResNet` is.

    Raises:
      InputError: as `ResNet`; or the images are smaller than the stages can halve; or
        `stochastic_depth` is set without a residual block.

    Examples:
      >>> import flaxres
      >>> model = flaxres.ResNet9(widths=(8, 16, 16), stem_width=8)
      >>> import jax
      >>> images = jax.ShapeDtypeStruct((1, 32, 32, 3), jax.numpy.float32)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape
      (1, 10)
    """

    num_classes: int = 10
    depths: tuple[int, ...] = (2, 1, 2)
    widths: tuple[int, ...] = (128, 256, 512)
    stem_width: int = 64

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False, features: bool = False
    ) -> Any:
        self.check(images)
        self.check_stages(self.depths, self.widths)
        if self.stochastic_depth and max(self.depths) < 2:
            raise InputError(
                f"stochastic_depth (={self.stochastic_depth}) drops residual blocks, "
                f"of which depths={self.depths} has none: leave it at 0"
            )
        conv, norm = self.conv(), self.norm()
        x = conv(self.stem_width, kernel_size=3, name="conv1")(images)
        x = norm_relu(norm(name="bn1"), x, train)
        maps = {"stem": x}
        block = functools.partial(
            ResidualBlock,
            kind="basic",
            stride=1,
            conv=conv,
            norm=norm,
            stochastic=self.stochastic_depth > 0,
        )
        residual_rates = self.drop_rates(tuple(depth - 1 for depth in self.depths))
        for i, (width, rates) in enumerate(zip(self.widths, residual_rates, strict=True), 1):
            first = functools.partial(PooledConvolution, width, conv, norm)
            rest, rates = functools.partial(block, width=width), (0.0, *rates)
            x = Stage(first, rest, rates, self.scan_blocks, self.remat, name=f"layer{i}")(x, train)
            maps[f"stage{i}"] = x
        maps["pooled"] = self.pooled(x)
        return maps if features else self.head(maps["pooled"], train, "fc")

    @property
    def for_small_images(self) -> bool:
        """True: the network is made for CIFAR-10 (Page 2018)."""
        return True

    def stage_layers(self) -> list[str]:
        """Returns the names of the stages' layers, see `Network.stage_layers`."""
        return [f"layer{i}" for i, _ in enumerate(self.depths, 1)]

    def extents(self, side: int) -> list[int] | None:
        """Returns the extent of each stage's map, see `Network.extents`."""
        result = [side // 2**i for i in range(1, len(self.widths) + 1)]
        return result if result[-1] else None
