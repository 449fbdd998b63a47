"""Residual blocks (He et al. 2016, sections 3.2 to 3.4) and pre-activation blocks.

Pre-activation blocks are those of He et al. 2016, "Identity mappings in deep residual networks".
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from flaxres.models.activations import relu
from flaxres.models.layers import norm_relu, norm_sum_relu, zero_pad_shortcut
from flaxres.models.pooling import anti_alias_pool, shrink_average
from flaxres.models.stochastic import drop_path

EXPANSION = {"basic": 1, "bottleneck": 4}


class Row(NamedTuple):
    """One convolution of a branch; the fields are attributes of `flaxres.models.layers.Conv`."""

    features: int
    kernel_size: int
    stride: int = 1
    groups: int = 1
    dilation: int = 1


def branch(
    kind: str,
    width: int,
    stride: int,
    v1: bool,
    cardinality: int,
    base_width: int,
    dilation: tuple[int, int],
    reduction: int = 1,
) -> list[Row]:
    """Returns the convolutions of a residual branch.

    Args:
      kind: 'basic' or 'bottleneck'.
      width: width of the block; a bottleneck's output is four times as wide.
      stride: stride of the block.
      v1: stride on a bottleneck's first 1x1, as in the paper. The default, v1.5, strides on the
        3x3, as PyTorch does.
      cardinality: groups of the 3x3 (Xie et al. 2017, table 1).
      base_width: width of a group where the block's width is 64 (Xie et al. 2017, table 1).
      dilation: dilation of the strided 3x3, and of a basic block's second 3x3. They differ in the
        block at which a dilation begins: its first 3x3 still has the dilation of the stage before.
      reduction: divides the width of the first convolution (SENet-154, Hu et al. 2018, section
        6.1).
    """
    first, rest = dilation
    if kind == "basic":
        return [Row(width // reduction, 3, stride, dilation=first), Row(width, 3, dilation=rest)]
    inner = width * base_width // 64 * cardinality
    strides = (stride, 1) if v1 else (1, stride)
    return [
        Row(inner // reduction, 1, strides[0]),
        Row(inner, 3, strides[1], cardinality, first),
        Row(4 * width, 1),
    ]


class Projection(nn.Module):
    """A shortcut with parameters; layers are named by index, as in PyTorch's `downsample`.

    Option B of He et al. 2016, section 3.3: a 1x1 convolution and a norm. With `averaged`, that of
    ResNet-D (He et al. 2019, section 4.2), which averages pixels instead of skipping them.

    Attributes:
      features: channels of the result.
      stride: stride of the convolution, or of the average in its place.
      averaged: average before the convolution.
      dilated: average at stride 1 too, as timm does where a dilation takes the place of a stride.
      conv, norm: layers with their dtypes bound; None leaves the norm out.
      kernel_size, kernel_dilation: of the convolution, where it does not average.
    """

    features: int
    stride: int
    averaged: bool
    dilated: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module] | None
    kernel_size: int = 1
    kernel_dilation: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 k"]:
        if self.averaged and (self.stride != 1 or self.dilated):
            x = shrink_average(x, self.stride)
        first = int(self.averaged)
        y: jax.Array = self.conv(
            self.features,
            kernel_size=self.kernel_size,
            stride=1 if self.averaged else self.stride,
            dilation=self.kernel_dilation,
            name=str(first),
        )(x)
        if self.norm is not None:
            y = self.norm(name=str(first + 1))(y, use_running_average=not train)
        return y


class ResidualBlock(nn.Module):
    """`relu(F(x) + shortcut(x))` (He et al. 2016, eq. 1 and 2); `branch` gives F.

    In blocks with a shortcut the last norm's scale starts at zero, so that each block starts as its
    shortcut (Goyal et al. 2017, section 5.1).

    Attributes:
      kind, width, stride, v1, cardinality, base_width, dilation, reduction: see `branch`.
      shortcut: 'projection', 'average' or 'zero_pad' where the shape changes; elsewhere the
        shortcut is the identity. 'none' leaves out all shortcuts: `relu(F(x))`, the plain
        network of section 3.3.
      shortcut_size: kernel size of a 'projection' that strides or dilates.
      attention: module at the end of the branch, named `se` as in timm.
      anti_alias: 'blur' or 'average' pooling in place of the stride: after the 3x3, or with `v1`
        after a bottleneck's first 1x1. A block at which a dilation begins pools as well.
      conv, norm: layers with their dtypes bound.
      pruned: output channels of each convolution where they are fewer than those of `branch`.
      stochastic: use `drop_rate`, an argument of the call.

    Call: `(N, H, W, C)` -> `(N, H / stride, W / stride, expansion * width)`.
    """

    kind: str
    width: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    shortcut: str = "projection"
    v1: bool = False
    cardinality: int = 1
    base_width: int = 64
    dilation: tuple[int, int] = (1, 1)
    reduction: int = 1
    shortcut_size: int = 1
    attention: Callable[..., nn.Module] | None = None
    anti_alias: str | None = None
    pruned: tuple[int, ...] = ()
    stochastic: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool, drop_rate: Any = 0.0
    ) -> Float[Array, "n h2 w2 k"]:
        y, norm = self.branch_of(x, train)
        bare = self.attention is None and not self.stochastic
        if norm is not None and bare and self.shortcut != "none":
            return norm_sum_relu(norm, y, self.shortcut_of(x, y.shape[-1], train), train)
        y = self.attended(y if norm is None else norm(y, not train))
        if self.stochastic:
            y = drop_path(self, y, drop_rate, train)
        if self.shortcut == "none":
            return relu(y)
        return relu(y + self.shortcut_of(x, y.shape[-1], train))

    def branch_of(
        self, x: Float[Array, "n h w c"], train: bool
    ) -> tuple[Float[Array, "n h2 w2 k"], nn.Module | None]:
        """Returns the result of the branch's last convolution, and the norm that follows it.

        Or F(x), and None.
        """
        rows = branch(
            self.kind,
            self.width,
            self.stride,
            self.v1,
            self.cardinality,
            self.base_width,
            self.dilation,
            self.reduction,
        )
        widths = self.pruned or [row.features for row in rows]
        rows = [row._replace(features=n) for row, n in zip(rows, widths, strict=True)]
        # As in timm: also in a block whose dilation differs from that of the stage before.
        anti_aliased = self.stride != 1 or self.dilation[0] != self.dilation[1]
        strided = 1 if self.kind == "basic" or self.v1 else 2
        y = x
        for i, row in enumerate(rows[:-1], 1):
            pooled = self.anti_alias is not None and anti_aliased and i == strided
            row = row._replace(stride=1) if pooled else row
            y = self.conv(**row._asdict(), name=f"conv{i}")(y)
            y = norm_relu(self.norm(name=f"bn{i}"), y, train)
            if pooled:
                y = anti_alias_pool(y, str(self.anti_alias), self.stride)
        y = self.conv(**rows[-1]._asdict(), name=f"conv{len(rows)}")(y)
        return y, self.last_norm(f"bn{len(rows)}")

    def attended(self, y: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Applies the attention at the end of the branch, if the block has one."""
        return y if self.attention is None else self.attention(name="se")(y)

    def last_norm(self, name: str) -> nn.Module:
        """Returns the last norm of the branch."""
        zero = {"scale_init": nn.initializers.zeros_init()} if self.shortcut != "none" else {}
        return self.norm(name=name, **zero)

    def changes_shape(self, x: Float[Array, "n h w c"], features: int) -> bool:
        """Returns whether a block of `features` channels changes the shape of `x`.

        The identity can't be its shortcut then.
        """
        return self.stride != 1 or x.shape[-1] != features

    def shortcut_of(
        self, x: Float[Array, "n h w c"], features: int, train: bool
    ) -> Float[Array, "n h2 w2 k"]:
        """Returns `x` in the shape of the branch's result, which has `features` channels."""
        if not self.changes_shape(x, features):
            return x
        if self.shortcut == "zero_pad":
            return zero_pad_shortcut(x, features, self.stride)
        averaged = self.shortcut == "average"
        dilated = self.dilation[1] != 1
        # As in timm: only a projection that strides, or is dilated instead, is larger than 1x1.
        larger = self.shortcut_size > 1 and not averaged and (self.stride != 1 or dilated)
        return Projection(
            features,
            self.stride,
            averaged,
            dilated,
            self.conv,
            self.norm,
            kernel_size=self.shortcut_size if larger else 1,
            kernel_dilation=self.dilation[0] if larger else 1,
            name="downsample",
        )(x, train)


class Downsample(nn.Module):
    """The shortcut of a pre-activation stage's first block, without a norm of its own.

    Named as in timm's `downsample.conv`. Attributes are those of `Projection`.
    """

    features: int
    stride: int
    averaged: bool
    conv: Callable[..., nn.Module]
    dilated: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 k"]:
        if self.averaged and (self.stride != 1 or self.dilated):
            x = shrink_average(x, self.stride)
        stride = 1 if self.averaged else self.stride
        y: jax.Array = self.conv(self.features, kernel_size=1, stride=stride, name="conv")(x)
        return y


class PreActivationBlock(nn.Module):
    """`F(relu(norm(x))) + shortcut` (He et al. 2016, "Identity mappings", figure 4e).

    The shortcut is `x`. With `project` it is a projection of `relu(norm(x))`. Layers are named as
    in timm's resnetv2.

    Call: `(N, H, W, C)` -> `(N, H / stride, W / stride, features)`. A bottleneck's branch is a
    quarter as wide.
    """

    kind: str
    features: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    project: bool = False
    averaged: bool = False
    stochastic: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool, drop_rate: Any = 0.0
    ) -> Float[Array, "n h2 w2 k"]:
        width = self.features // EXPANSION[self.kind]
        rows = branch(
            self.kind,
            width,
            self.stride,
            v1=False,
            cardinality=1,
            base_width=64,
            dilation=(1, 1),
        )
        y = norm_relu(self.norm(name="norm1"), x, train)
        if self.project:
            shortcut = Downsample(
                self.features, self.stride, self.averaged, self.conv, name="downsample"
            )
            x = shortcut(y)
        y = self.conv(**rows[0]._asdict(), name="conv1")(y)
        for i, row in enumerate(rows[1:], 2):
            y = norm_relu(self.norm(name=f"norm{i}"), y, train)
            y = self.conv(**row._asdict(), name=f"conv{i}")(y)
        if self.stochastic:
            y = drop_path(self, y, drop_rate, train)
        return x + y
