"""RegNets X and Y (Radosavovic et al. 2020, "Designing network design spaces"), Z, and timm's V."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from flaxres.errors import InputError
from flaxres.models.activations import ACTIVATIONS
from flaxres.models.attention import SqueezeExcite, rounded
from flaxres.models.blocks import Projection
from flaxres.models.layers import ConvNorm, norm_act
from flaxres.models.network import Network, extents_of
from flaxres.models.stage import Stage
from flaxres.models.stochastic import drop_path


def design(
    depth: int,
    initial: int,
    slope: float,
    factor: float,
    group_width: int,
    share: float = 0.0,
    expansion: float = 1.0,
) -> dict[str, Any]:
    """Returns the attributes of the `RegNet` of a point of the design space.

    Args:
      depth, initial, slope, factor: d, w_0, w_a and w_m (Radosavovic et al. 2020, eq. 2 to 4).
      group_width: channels of a group.
      share: rounding of the widths to multiples of the groups. 0 takes the nearest, as the authors
        do; torchvision takes the next one above if the nearest is below 0.9 of the width.
      expansion: width of the 3x3, which is what has groups, as a multiple of the stage's.

    Examples:
      >>> design(13, 24, 36.44, 2.49, 8)
      {'depths': (1, 1, 4, 7), 'widths': (24, 56, 152, 368), 'group_width': 8}
    """
    line = initial + slope * np.arange(depth)
    exponents = np.round(np.log(line / initial) / np.log(factor))
    blocks = (np.round(initial * factor**exponents / 8) * 8).astype(int)
    widths, depths = np.unique(blocks, return_counts=True)
    widths = (widths * expansion).astype(int)
    divisors = np.minimum(widths, group_width)
    multiples = [
        rounded(width, divisor, share=share) if share else round(width / divisor) * divisor
        for width, divisor in zip(widths.tolist(), divisors.tolist(), strict=True)
    ]
    return {
        "depths": tuple(depths.tolist()),
        "widths": tuple(int(width / expansion) for width in multiples),
        "group_width": group_width,
    }


class RegNetBlock(nn.Module):
    """A bottleneck of constant width (Radosavovic et al. 2020, figure 4; Y: section 5).

    Attributes:
      features: channels.
      inner: channels of the 3x3.
      groups: of the 3x3.
      stride: of the 3x3 and of the shortcut.
      dilation: of the 3x3, and of the blocks after it.
      squeezed: inner width of a squeeze and excitation after the 3x3; 0 leaves it out.
      conv, norm: layers with their dtypes bound.
      shortcut: where the block changes the shape; see `RegNet`.
      activation: by name.
      linear: no activation after the sum.
      stochastic: use `drop_rate`, an argument of the call.

    Call: `(N, H, W, C)` -> `(N, H / stride, W / stride, features)`.
    """

    features: int
    inner: int
    groups: int
    stride: int
    dilation: tuple[int, int]
    squeezed: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    shortcut: str = "projection"
    activation: str = "relu"
    linear: bool = False
    stochastic: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool, drop_rate: Any = 0.0
    ) -> Float[Array, "n h2 w2 k"]:
        # Without a shortcut no branch may start at zero.
        ends = {} if self.has_none(x) else {"scale_init": nn.initializers.zeros_init()}
        last = functools.partial(self.norm, **ends)
        layer = functools.partial(
            ConvNorm, conv=self.conv, norm=self.norm, activation=self.activation
        )
        y = layer(self.inner, name="conv1")(x, train)
        y = layer(**self.grouped(), name="conv2")(y, train)
        y = self.squeeze(y)
        y = layer(self.features, norm=last, activation=None, name="conv3")(y, train)
        if not self.has_none(x):
            if self.stochastic:
                y = drop_path(self, y, drop_rate, train)
            if self.changes_shape(x):
                x = layer(self.features, stride=self.stride, activation=None, name="downsample")(
                    x, train
                )
            y = x + y
        return y if self.linear else ACTIVATIONS[self.activation](y)

    def grouped(self) -> dict[str, Any]:
        """Returns the attributes of the 3x3, without its dilation."""
        # As the authors: the fan out is that of a group.
        init = nn.initializers.variance_scaling(2.0 * self.groups, "fan_out", "normal")
        return {
            "features": self.inner,
            "conv": functools.partial(self.conv, kernel_init=init),
            "kernel_size": 3,
            "stride": self.stride,
            "groups": self.groups,
            "dilation": self.dilation[0],
        }

    def squeeze(self, y: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Applies squeeze and excitation, if the block has it."""
        if not self.squeezed:
            return y
        attention = SqueezeExcite(
            self.conv, width=self.squeezed, activation=self.activation, name="se"
        )
        return attention(y)

    def changes_shape(self, x: Float[Array, "n h w c"]) -> bool:
        """Returns whether the shortcut is not the identity."""
        dilates = self.dilation[0] != self.dilation[1]
        return x.shape[-1] != self.features or self.stride != 1 or dilates

    def has_none(self, x: Float[Array, "n h w c"]) -> bool:
        """Returns whether the block has no shortcut."""
        return self.shortcut == "none" and self.changes_shape(x)


class PreActivationRegNetBlock(RegNetBlock):
    """A `RegNetBlock` whose norms and activations come before its convolutions (timm's V).

    The shortcut starts after the first of them. `linear` has no effect.
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool, drop_rate: Any = 0.0
    ) -> Float[Array, "n h2 w2 k"]:
        x = norm_act(self.norm(name="norm1"), x, train, self.activation)
        y = self.conv(self.inner, kernel_size=1, name="conv1")(x)
        y = norm_act(self.norm(name="norm2"), y, train, self.activation)
        grouped = self.grouped()
        y = self.squeeze(grouped.pop("conv")(**grouped, name="conv2")(y))
        y = norm_act(self.norm(name="norm3"), y, train, self.activation)
        z: jax.Array = self.conv(self.features, kernel_size=1, name="conv3")(y)
        if self.has_none(x):
            return z
        if self.stochastic:
            z = drop_path(self, z, drop_rate, train)
        return z + self.shortcut_of(x, train)

    def shortcut_of(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 k"]:
        """Returns the block's normalised input in the shape of its result."""
        if not self.changes_shape(x):
            return x
        result: jax.Array
        if self.shortcut == "average":
            dilated = self.dilation[0] > 1
            project = Projection(
                self.features, self.stride, True, dilated, self.conv, None, name="downsample"
            )
            result = project(x, train)
            return result
        result = self.conv(self.features, kernel_size=1, stride=self.stride, name="downsample")(x)
        return result


class RegNet(Network):
    """A RegNet. Layers have timm's names: `stem`, `s1` to `s4`, `final_conv`, `head.fc`.

    It also has the attributes of `flaxres.models.network.Network`.

    Attributes:
      depths: blocks in each stage; each stage halves the resolution.
      widths: channels of each stage.
      group_width: channels of a group of the 3x3. It divides the width of each 3x3, or is wider.
      expansion: width of the 3x3 as a multiple of the stage's (Dollár et al. 2021, section 5.3,
        for Z).
      se_ratio: inner width of squeeze and excitation as a share of the block's input; 0 is an X,
        without them.
      stem_width: width of the stem's 3x3/2 convolution.
      shortcut: where a block changes the shape. 'projection'; 'none' (Z); or with `preactivation`
        'average', pooled before the projection, as in ResNet-D.
      activation: 'relu', 'silu' or 'gelu'.
      linear: no activation after the sums, but one after the last stage (Z).
      preactivation: norms and activations before the convolutions (timm's V).
      last_width: channels of a 1x1 convolution before the pooling; 0 leaves it out.
      output_stride: 32, or 16 or 8 with dilated convolutions in the last stages.

    Called as `ResNet` is.

    Raises:
      InputError: as `ResNet`; or the groups don't divide a width.

    Examples:
      >>> import flaxres
      >>> model = flaxres.create_model("regnety_002", num_classes=10)
      >>> model.widths, model.se_ratio
      ((24, 56, 152, 368), 0.25)
    """

    # Attributes that change the function and none of the leaves.
    BEYOND_LEAVES: ClassVar[tuple[str, ...]] = ("output_stride", "activation", "linear")

    depths: tuple[int, ...] = (1, 1, 4, 7)
    widths: tuple[int, ...] = (24, 56, 152, 368)
    group_width: int = 8
    expansion: float = 1.0
    se_ratio: float = 0.0
    stem_width: int = 32
    shortcut: str = "projection"
    activation: str = "relu"
    linear: bool = False
    preactivation: bool = False
    last_width: int = 0
    output_stride: int = 32

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False, features: bool = False
    ) -> Any:
        self.check(
            images,
            output_stride=(self.output_stride, (8, 16, 32)),
            activation=(self.activation, ACTIVATIONS),
            shortcut=(self.shortcut, self.shortcuts()),
        )
        self.check_stages(self.depths, self.widths)
        self.check_groups()
        conv, norm = self.conv(), self.norm()
        layer = functools.partial(ConvNorm, conv=conv, norm=norm, activation=self.activation)
        x: jax.Array
        if self.preactivation:
            x = conv(self.stem_width, kernel_size=3, stride=2, name="stem")(images)
        else:
            x = layer(self.stem_width, kernel_size=3, stride=2, name="stem")(images, train)
        maps = {"stem": x}
        stages = zip(self.widths, self.drop_rates(self.depths), self.stage_strides(), strict=True)
        for i, (width, drops, (stride, dilations)) in enumerate(stages, 1):
            block = functools.partial(
                PreActivationRegNetBlock if self.preactivation else RegNetBlock,
                width,
                self.inner(width),
                self.inner(width) // min(self.group_width, self.inner(width)),
                conv=conv,
                norm=norm,
                shortcut=self.shortcut,
                activation=self.activation,
                linear=self.linear,
                stochastic=self.stochastic_depth > 0,
            )
            first = functools.partial(block, stride, dilations, self.squeezed(x.shape[-1]))
            dilation = (dilations[1], dilations[1])
            rest = functools.partial(block, 1, dilation, self.squeezed(width))
            stage = Stage(first, rest, drops, self.scan_blocks, self.remat, name=f"s{i}")
            maps[f"stage{i}"] = x = stage(x, train)
        if self.last_width:
            x = layer(self.last_width, name="final_conv")(x, train)
        elif self.linear or self.preactivation:
            x = ACTIVATIONS[self.activation](x)
        maps["pooled"] = self.pooled(x)
        return maps if features else self.head(maps["pooled"], train, "head.fc")

    def inner(self, width: int) -> int:
        """Returns the channels of the 3x3 convolutions of a stage."""
        return round(width * self.expansion)

    def squeezed(self, channels: int) -> int:
        """Returns the inner width of squeeze and excitation for a block's input, 0 for an X."""
        return max(1, round(self.se_ratio * channels)) if self.se_ratio else 0

    def shortcuts(self) -> tuple[str, ...]:
        """Returns the values that `shortcut` may have."""
        return ("projection", "none", "average") if self.preactivation else ("projection", "none")

    def check_groups(self) -> None:
        """Checks that the groups divide the width of the 3x3 of each stage.

        Raises:
          InputError: they don't.
        """
        for width in self.widths:
            inner = self.inner(width)
            if inner < 1 or inner % min(self.group_width, inner):
                times = f" times expansion (={self.expansion})" if self.expansion != 1 else ""
                raise InputError(
                    f"widths (={self.widths}){times} must be multiples of group_width "
                    f"(={self.group_width}), or narrower: change {width}"
                )

    def stage_strides(self) -> list[tuple[int, tuple[int, int]]]:
        """Returns each stage's stride and dilations, see `Network.strides_and_dilations`."""
        return self.strides_and_dilations([2] * len(self.depths), 2, self.output_stride)

    def stage_layers(self) -> list[str]:
        """Returns the names of the stages' layers, see `Network.stage_layers`."""
        return [f"s{i}" for i, _ in enumerate(self.depths, 1)]

    def extents(self, side: int) -> list[int] | None:
        """Returns the extent of each stage's map, see `Network.extents`."""
        return extents_of(-(-side // 2), [stride for stride, _ in self.stage_strides()])
