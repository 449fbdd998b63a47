"""Pre-activation residual networks and BiT.

He et al. 2016, "Identity mappings in deep residual networks"; Kolesnikov et al. 2020.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from flaxres.models.blocks import EXPANSION, PreActivationBlock
from flaxres.models.layers import head_init, norm_relu
from flaxres.models.network import Nested, Network, Stages
from flaxres.models.stage import Stage
from flaxres.models.stochastic import Dropout
from flaxres.ops.pool import max_pool

CHOICES = {
    "block": tuple(EXPANSION),
    "stem": ("standard", "small", "deep", "fixed"),
    "norm_kind": ("batch", "group", "evo"),
}


class Stem(nn.Module):
    """The convolutions before the first block.

    No norm or ReLU follows the last convolution, since the blocks begin with theirs.
    """

    kind: str
    width: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 k"]:
        if self.kind != "deep":
            size, stride = (3, 1) if self.kind == "small" else (7, 2)
            y: jax.Array = self.conv(self.width, kernel_size=size, stride=stride, name="conv")(x)
            return y
        for i, width in enumerate((self.width // 2, self.width // 2, self.width), 1):
            x = self.conv(width, kernel_size=3, stride=2 if i == 1 else 1, name=f"conv{i}")(x)
            if i < 3:
                x = norm_relu(self.norm(name=f"norm{i}"), x, train)
        return x


class ResNetV2(Network):
    """A pre-activation residual network.

    Layers have timm's names: `stem`, `stages.0.blocks.0`, ..., `norm`, `head.fc`.

    It also has the attributes of `flaxres.models.network.Network`.

    Attributes:
      depths: blocks in each stage.
      widths: outer width of each stage; stages after the first halve the resolution.
      block: 'bottleneck' or 'basic'. The first block of a stage has a projection; a basic one that
        keeps the shape has none.
      stem: 'standard' (7x7/2, max pooling), 'small' (3x3), 'deep' (three 3x3, max pooling) or
        'fixed' (BiT's: the max pooling pads by zeros).
      stem_width: width of the stem's output.
      averaged: average pooling before the projections, as in ResNet-D.
      norm_kind: 'batch', 'group', or 'evo' (EvoNorm-S0, in place of each norm and its ReLU).
      standardise: epsilon of weight standardisation, or None.

    Called as `ResNet` is. `stem` and `stage1` to `stage4` are raw sums, before any norm.

    Examples:
      >>> import flaxres
      >>> model = flaxres.ResNetV2(num_classes=10)
      >>> images = jax.ShapeDtypeStruct((1, 224, 224, 3), jax.numpy.float32)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape
      (1, 10)
    """

    # Attributes that change the function and none of the leaves.
    BEYOND_LEAVES: ClassVar = ("stem", "averaged", "standardise")

    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    block: str = "bottleneck"
    stem: str = "standard"
    stem_width: int = 64
    averaged: bool = False
    norm_kind: str = "batch"
    standardise: float | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False, features: bool = False
    ) -> Any:
        choices = {name: (getattr(self, name), allowed) for name, allowed in CHOICES.items()}
        self.check(images, **choices)
        self.check_stages(self.depths, self.widths)
        conv, norm = self.conv(standardise=self.standardise), self.norm(self.norm_kind)
        x = Stem(self.stem, self.stem_width, conv, norm, name="stem")(images, train)
        maps = {"stem": x}
        if self.stem != "small":
            x = max_pool(x, fill=0.0) if self.stem == "fixed" else max_pool(x)
        block = functools.partial(
            PreActivationBlock,
            kind=self.block,
            conv=conv,
            norm=norm,
            stochastic=self.stochastic_depth > 0,
        )
        stages: list[Callable[..., nn.Module]] = []
        for width, rates in zip(self.widths, self.drop_rates(self.depths), strict=True):
            rest = functools.partial(block, features=width, stride=1)
            stride = 2 if stages else 1
            project = self.block != "basic" or stride != 1 or width != self.stem_width
            first = functools.partial(rest, stride=stride, project=project, averaged=self.averaged)
            blocks = functools.partial(Stage, first, rest, rates, self.scan_blocks, self.remat)
            stages.append(functools.partial(Nested, blocks, "blocks"))
        outputs = Stages(tuple(stages), name="stages")(x, train)
        maps |= {f"stage{i}": output for i, output in enumerate(outputs, 1)}
        x = norm_relu(norm(name="norm"), outputs[-1], train)
        maps["pooled"] = self.pooled(x)
        return maps if features else self.head(maps["pooled"], train, "head")

    def extents(self, side: int) -> list[int] | None:
        """Returns the extent of each stage's map, see `Network.extents`."""
        result = [side if self.stem == "small" else -(-side // 4)]
        for _ in self.depths[1:]:
            result.append(-(-result[-1] // 2))
        return result if side else None

    def head(self, x: Float[Array, "n c"], train: bool, name: str) -> Float[Array, "n k"]:
        """Classifies by a 1x1 convolution named `head.fc`, as timm does in this network."""
        if not self.num_classes:
            return x
        if self.dropout:
            x = Dropout(self.dropout)(x, train)
        fc = functools.partial(
            self.conv(),
            self.num_classes,
            kernel_size=1,
            use_bias=True,
            kernel_init=head_init,
            bias_init=self.head_bias_init,
            dtype=x.dtype,
        )
        logits: jax.Array = Nested(fc, "fc", name=name)(x[:, None, None])[:, 0, 0]
        return logits
