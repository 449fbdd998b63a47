"""ResNet-9, the small residual network of the races for the fastest CIFAR-10 training (Page 2018, "How to train your ResNet", part 4)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from flaxres.errors import InputError
from flaxres.models.blocks import ResidualBlock, Stage
from flaxres.models.layers import activated
from flaxres.models.network import Network
from flaxres.ops.pool import max_pool


class PooledConvolution(nn.Module):
    """A 3x3 convolution, 2x2 max pooling, a norm and a ReLU: `(N, H, W, C)` -> `(N, H // 2, W // 2, width)`.

    The pooling is before the norm, which then has a quarter to read (Jordan 2024, section 3.1).
    """

    width: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, drop_rate: Any = 0.0) -> jax.Array:
        del drop_rate  # it has no shortcut that could stand for it
        x = max_pool(self.conv(self.width, kernel_size=3, name="conv1")(x), size=2, stride=2, padding=0)
        return activated(self.norm(name="bn1"), x, train)


class ResNet9(Network):
    """A shallow and wide residual network for small images, which learns more in the first minutes than the deep and narrow ones of He et al. 2016.

    Each stage convolves before it halves the resolution, by max pooling; residual blocks without any stride follow. Other than Page's: pooling is
    before the norm, a block is He et al.'s (the ReLU after the sum, the last norm's scale zero at first), global pooling is an average, and logits
    are not scaled. Names of layers are `ResNet`'s: `conv1`, `layer1.0.conv1`, ...

    Attributes (and those of `Network`, `num_classes` being 10):
      widths: of each stage.
      depths: blocks of each stage, of which the first is the pooled convolution, and each further one residual, of two 3x3 convolutions. Stochastic
        depth is that of the residual ones.
      stem_width: width of the stem's 3x3 convolution.

    Calls as `ResNet` does. Raises InputError, beyond what that does, for images that the stages would halve to nothing and for
    stochastic depth without a residual block.
    """

    num_classes: int = 10
    depths: tuple[int, ...] = (2, 1, 2)
    widths: tuple[int, ...] = (128, 256, 512)
    stem_width: int = 64

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, features: bool = False) -> Any:
        self.check(images)
        self.check_stages(self.depths, self.widths)
        if min(images.shape[1:3]) < (smallest := 2 ** len(self.widths)):
            raise InputError(f"images have shape {images.shape}: {len(self.widths)} stages halve the sides, which must be at least {smallest} pixels")
        if self.stochastic_depth and max(self.depths) < 2:
            raise InputError(
                f"stochastic_depth (={self.stochastic_depth}) drops residual blocks, of which depths={self.depths} has none: leave it at 0"
            )
        conv, norm = self.conv(), self.norm()
        x = conv(self.stem_width, kernel_size=3, name="conv1")(images)
        x = activated(norm(name="bn1"), x, train)
        maps = {"stem": x}
        block = functools.partial(ResidualBlock, kind="basic", stride=1, conv=conv, norm=norm, stochastic=self.stochastic_depth > 0)
        for i, (width, rates) in enumerate(zip(self.widths, self.drop_rates(tuple(depth - 1 for depth in self.depths)), strict=True), 1):
            first, rest = functools.partial(PooledConvolution, width, conv, norm), functools.partial(block, width=width)
            x = Stage(first, rest, (0.0, *rates), self.scan_blocks, self.remat, name=f"layer{i}")(x, train)
            maps[f"stage{i}"] = x
        maps["pooled"] = self.pooled(x)
        return maps if features else self.head(maps["pooled"], train, "fc")
