"""Residual networks (He et al. 2016, "Deep residual learning for image recognition").

Options cover the descendants: ResNet-C, -D, -RS, ResNeXt, SE, ECA, wide and anti-aliased networks.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from flaxres.errors import InputError, unknown
from flaxres.models.attention import EfficientChannelAttention, SqueezeExcite
from flaxres.models.blocks import EXPANSION, ResidualBlock
from flaxres.models.layers import norm_relu, norm_relu_pool
from flaxres.models.network import Network
from flaxres.models.pooling import anti_alias_pool
from flaxres.models.stage import Stage
from flaxres.ops.pool import max_pool

STEMS = ("standard", "small", "deep", "deep_tiered")
CHOICES: dict[str, tuple[Any, ...]] = {
    "stem": STEMS,
    "shortcut": ("projection", "average", "zero_pad", "none"),
    "attention": (None, "se", "eca"),
    "anti_alias": (None, "blur", "average"),
    "norm_kind": ("batch", "group"),
    "output_stride": (8, 16, 32),
}
# Attributes that networks with other blocks don't support, with their only value there.
WITHOUT_VARIANTS: dict[str, tuple[Any, ...]] = {
    "anti_alias": (None,),
    "v1": (False,),
    "reduction": (1,),
    "pruned": ((),),
}


class DeepStem(nn.Module):
    """Three 3x3 convolutions in place of one 7x7 (ResNet-C, He et al. 2019, section 4.2).

    The last norm is left to the network.
    """

    widths: tuple[int, int, int]
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 k"]:
        for i, width in enumerate(self.widths):
            if i:
                x = norm_relu(self.norm(name=str(3 * i - 2)), x, train)
            x = self.conv(width, kernel_size=3, stride=1 if i else 2, name=str(3 * i))(x)
        return x


class PoolingConvolution(nn.Module):
    """A strided 3x3 convolution in place of the stem's max pooling (ResNet-RS).

    See Bello et al. 2021, section 4.2.
    """

    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 k"]:
        x = self.conv(x.shape[-1], kernel_size=3, stride=2, name="0")(x)
        return norm_relu(self.norm(name="1"), x, train)


class ResNet(Network):
    """A residual network. Layers have PyTorch's names: `conv1`, `bn1`, `layer1` ... , `fc`.

    It also has the attributes of `flaxres.models.network.Network`.

    Attributes:
      depths: blocks in each stage.
      block: 'basic' or 'bottleneck', or one of them for each stage.
      widths: inner width of each stage's blocks; stages after the first halve the resolution.
      stem: 'standard' is a 7x7/2 convolution and 3x3/2 max pooling. 'small' is a 3x3 convolution
        for small images. 'deep' is three 3x3 convolutions of widths `stem_width`, `stem_width` and
        `2 * stem_width`; 'deep_tiered' makes the first of them 3/4 as wide.
      stem_width: width of the stem's first convolution.
      stem_convolution: a strided convolution in place of the max pooling (ResNet-RS).
      shortcut: 'projection' (option B), 'average' (ResNet-D), 'zero_pad' (option A, without
        parameters), or 'none' (a plain network).
      shortcut_size: kernel size of a 'projection' that strides (SENet-154, Hu et al. 2018).
      reduction: divides the width of each block's first convolution (SENet-154).
      v1: stride on a bottleneck's first 1x1 (He et al. 2016) and not, as v1.5, on the 3x3.
      cardinality: groups of the 3x3 (ResNeXt, Xie et al. 2017).
      base_width: width of a group where the block's width is 64 (ResNeXt, wide ResNets).
      attention: None, 'se' (of `se_ratio`) or 'eca'.
      anti_alias: None, or 'blur' or 'average' pooling in place of strides.
      norm_kind: 'batch' or 'group'.
      pruned: output channels of every convolution of the blocks, in order, in a pruned network.
      output_stride: 32, or 16 or 8 with dilated convolutions in the last stages.
      head_name: name of the head in weight files.

    Call: normalised float images `(N, H, W, C)` -> logits `(N, num_classes)`. `train=True` uses
    batch statistics. It needs `mutable=["batch_stats"]`, and `rngs={"dropout": key}` with dropout
    or stochastic depth. `features=True` returns a dictionary of activations instead: `stem` before
    the stem's pooling, `stage1`, ... after each stage, and `pooled` after the global pooling.

    Raises:
      InputError: an attribute has an unknown value, or the images have another rank, another
        layout, an integer dtype, or sides that the strides can't halve (see `extents`).

    Examples:
      >>> import flaxres
      >>> model = flaxres.ResNet(depths=(1, 1), widths=(8, 16), block="basic", num_classes=10)
      >>> images = jax.ShapeDtypeStruct((1, 32, 32, 3), jax.numpy.float32)
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> jax.eval_shape(model.apply, variables, images).shape
      (1, 10)
    """

    # Attributes that the names and shapes of leaves don't determine; files of weights state them.
    BEYOND_LEAVES: ClassVar[tuple[str, ...]] = ("shortcut", "v1", "anti_alias", "output_stride")

    depths: tuple[int, ...] = (3, 4, 6, 3)
    block: str | tuple[str, ...] = "bottleneck"
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem: str = "standard"
    stem_width: int = 64
    stem_convolution: bool = False
    shortcut: str = "projection"
    shortcut_size: int = 1
    reduction: int = 1
    v1: bool = False
    cardinality: int = 1
    base_width: int = 64
    attention: str | None = None
    se_ratio: float = 1 / 16
    anti_alias: str | None = None
    norm_kind: str = "batch"
    pruned: tuple[int, ...] = ()
    output_stride: int = 32
    head_name: str = "fc"

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False, features: bool = False
    ) -> Any:
        choices = {name: (getattr(self, name), allowed) for name, allowed in self.choices().items()}
        self.check(images, **choices)
        self.check_stages(self.depths, self.widths)
        conv, norm = self.conv(), self.norm(self.norm_kind)
        stem, x = self.stem_maps(images, train, conv, norm, features)
        maps = {} if stem is None else {"stem": stem}
        block = functools.partial(
            self.residual_block(),
            conv=conv,
            norm=norm,
            shortcut=self.shortcut,
            shortcut_size=self.shortcut_size,
            reduction=self.reduction,
            v1=self.v1,
            cardinality=self.cardinality,
            base_width=self.base_width,
            anti_alias=self.anti_alias,
            stochastic=self.stochastic_depth > 0,
        )
        rates, strides = self.drop_rates(self.depths), self.stage_strides()
        stages = zip(self.stage_blocks(), self.widths, rates, strides, strict=True)
        for i, (kind, width, drops, (stride, dilations)) in enumerate(stages, 1):
            attention = self.attention_module(conv, EXPANSION[kind] * width)
            sized = functools.partial(block, kind=kind, width=width, attention=attention)
            dilation = dilations[1]
            first = functools.partial(sized, stride=stride, dilation=dilations)
            rest = functools.partial(sized, stride=1, dilation=(dilation, dilation))
            stage = Stage(
                first=first,
                rest=rest,
                drop_rates=drops,
                scan=self.scan_blocks,
                remat=self.remat,
                pruned=self.pruned_blocks(i - 1),
                name=f"layer{i}",
            )
            x = stage(x, train)
            maps[f"stage{i}"] = x
        maps["pooled"] = self.pooled(x)
        return maps if features else self.head(maps["pooled"], train, self.head_name)

    def choices(self) -> dict[str, tuple[Any, ...]]:
        """Returns the values that attributes may have."""
        return CHOICES

    def residual_block(self) -> Callable[..., ResidualBlock]:
        """Returns the block module; the network binds the attributes of `ResidualBlock`."""
        return ResidualBlock

    def stage_blocks(self) -> tuple[str, ...]:
        """Returns the type of each stage's blocks.

        Raises:
          InputError: a type is unknown, or there is not one for each stage.
        """
        blocks = (self.block,) * len(self.depths) if isinstance(self.block, str) else self.block
        for block in blocks:
            if block not in EXPANSION:
                raise unknown("block", block, EXPANSION)
        if len(blocks) != len(self.depths):
            raise InputError(
                f"block (={blocks}) and depths (={self.depths}) must have the same "
                "length: give one type of block, or one for each stage"
            )
        return blocks

    def pruned_blocks(self, stage: int) -> tuple[tuple[int, ...], ...]:
        """Returns the widths of the convolutions of a stage's blocks, () if none is pruned.

        Raises:
          InputError: `pruned` does not have a width for every convolution.
        """
        if not self.pruned:
            return ()
        counts = [2 if kind == "basic" else 3 for kind in self.stage_blocks()]
        per_stage = [count * depth for count, depth in zip(counts, self.depths, strict=True)]
        if len(self.pruned) != sum(per_stage):
            raise InputError(
                f"pruned has {len(self.pruned)} widths, the blocks have {sum(per_stage)} "
                "convolutions: give one width for each of them"
            )
        start, count = sum(per_stage[:stage]), counts[stage]
        widths = self.pruned[start : start + per_stage[stage]]
        return tuple(widths[i : i + count] for i in range(0, len(widths), count))

    def stage_strides(self) -> list[tuple[int, tuple[int, int]]]:
        """Returns each stage's stride and dilations, see `Network.strides_and_dilations`."""
        strides = [2 if i else 1 for i, _ in enumerate(self.depths)]
        return self.strides_and_dilations(strides, 4, self.output_stride)

    def stage_layers(self) -> list[str]:
        """Returns the names of the stages' layers, see `Network.stage_layers`."""
        return [f"layer{i}" for i, _ in enumerate(self.depths, 1)]

    def extents(self, side: int) -> list[int] | None:
        """Returns the extent of each stage's map, or None; see `Network.extents`.

        An average of two pixels drops an odd last one, which the shortcut keeps. A blur reflects
        the pixel beside an edge, so there must be two.
        """
        if (side := self.stem_extent(side)) < 1:
            return None
        result = []
        for stride, (previous, dilation) in self.stage_strides():
            if self.anti_alias == "blur" and (stride, previous) != (1, dilation) and side < 2:
                return None
            if stride == 2 and self.anti_alias == "average" and side % 2:
                return None
            side = -(-side // stride)
            result.append(side)
        return result if side else None

    def stem_extent(self, side: int) -> int:
        """Returns the extent of the map after the stem, below 1 for a side that it can't take."""
        if self.stem == "small":
            return side
        side = -(-side // 2)
        if self.anti_alias == "blur" and not self.stem_convolution and side < 2:
            return 0
        drops = self.anti_alias == "average" and not self.stem_convolution
        return side // 2 if drops else -(-side // 2)

    def stem_maps(
        self,
        x: jax.Array,
        train: bool,
        conv: Callable[..., nn.Module],
        norm: Callable[..., nn.Module],
        features: bool,
    ) -> tuple[jax.Array | None, jax.Array]:
        """Returns the stem's activations before its pooling and after it.

        The first is None if `features` is False and the pooling comes before the norm.
        """
        if self.stem in ("standard", "small"):
            size, stride = (7, 2) if self.stem == "standard" else (3, 1)
            x = conv(self.stem_width, kernel_size=size, stride=stride, name="conv1")(x)
        else:
            first = self.stem_width // 4 * 3 if self.stem == "deep_tiered" else self.stem_width
            widths = (first, self.stem_width, 2 * self.stem_width)
            x = DeepStem(widths, conv, norm, name="conv1")(x, train)
        norm1 = norm(name="bn1")
        if self.stem != "small" and not self.stem_convolution and self.anti_alias != "average":
            blurs = self.anti_alias == "blur"
            pool = functools.partial(max_pool, stride=1 if blurs else 2)
            stem, x = norm_relu_pool(norm1, x, train, pool, features)
            return stem, anti_alias_pool(x, "blur", 2) if blurs else x
        x = norm_relu(norm1, x, train)
        if self.stem == "small":
            return x, x
        if self.stem_convolution:
            return x, PoolingConvolution(conv, norm, name="maxpool")(x, train)
        return x, anti_alias_pool(x, "average", 2)

    def attention_module(
        self, conv: Callable[..., nn.Module], channels: int
    ) -> Callable[..., nn.Module] | None:
        """Returns the attention module of a stage's blocks, or None.

        Args:
          conv: convolution with its dtypes bound.
          channels: of the blocks' results, before any pruning.
        """
        if self.attention == "se":
            return functools.partial(SqueezeExcite, conv, self.se_ratio)
        if self.attention == "eca":
            return functools.partial(
                EfficientChannelAttention, channels, self.dtype, self.param_dtype
            )
        return None
