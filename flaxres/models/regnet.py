"""RegNets X and Y (Radosavovic et al. 2020, "Designing network design spaces")."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from flaxres.errors import InputError
from flaxres.models.attention import SqueezeExcite, rounded
from flaxres.models.blocks import Stage
from flaxres.models.layers import ConvNorm, relu
from flaxres.models.network import Network
from flaxres.models.stochastic import drop_path


def design(
    depth: int, initial: int, slope: float, factor: float, group_width: int, share: float = 0.0
) -> dict[str, Any]:
    """Returns the attributes of the `RegNet` of a point of the design space.

    Args:
      depth, initial, slope, factor: d, w_0, w_a and w_m (Radosavovic et al. 2020, eq. 2 to 4).
      group_width: channels of a group.
      share: rounding of the widths to multiples of the groups. 0 takes the nearest, as the authors
        do; torchvision takes the next one above if the nearest is below 0.9 of the width.

    Examples:
      >>> design(13, 24, 36.44, 2.49, 8)
      {'depths': (1, 1, 4, 7), 'widths': (24, 56, 152, 368), 'group_width': 8}
    """
    line = initial + slope * np.arange(depth)
    exponents = np.round(np.log(line / initial) / np.log(factor))
    blocks = (np.round(initial * factor**exponents / 8) * 8).astype(int)
    widths, depths = np.unique(blocks, return_counts=True)
    divisors = np.minimum(widths, group_width)
    multiples = [
        rounded(width, divisor, share=share) if share else round(width / divisor) * divisor
        for width, divisor in zip(widths.tolist(), divisors.tolist(), strict=True)
    ]
    return {
        "depths": tuple(depths.tolist()),
        "widths": tuple(multiples),
        "group_width": group_width,
    }


class RegNetBlock(nn.Module):
    """A bottleneck of constant width (Radosavovic et al. 2020, figure 4; Y: section 5).

    Attributes:
      features: channels.
      group_width: channels of a group of the 3x3.
      stride: of the 3x3 and of the shortcut.
      dilation: of the 3x3, and of the blocks after it.
      squeezed: inner width of a squeeze and excitation after the 3x3; 0 leaves it out.
      conv, norm: layers with their dtypes bound.
      stochastic: use `drop_rate`, an argument of the call.

    Call: `(N, H, W, C)` -> `(N, H / stride, W / stride, features)`.
    """

    features: int
    group_width: int
    stride: int
    dilation: tuple[int, int]
    squeezed: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    stochastic: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool, drop_rate: Any = 0.0
    ) -> Float[Array, "n h2 w2 k"]:
        groups = self.features // min(self.group_width, self.features)
        # As the authors: the fan out is that of a group.
        grouped = nn.initializers.variance_scaling(2.0 * groups, "fan_out", "normal")
        zeros = functools.partial(self.norm, scale_init=nn.initializers.zeros_init())
        layer = functools.partial(ConvNorm, features=self.features, conv=self.conv, norm=self.norm)
        y = layer(name="conv1")(x, train)
        y = layer(
            conv=functools.partial(self.conv, kernel_init=grouped),
            kernel_size=3,
            stride=self.stride,
            groups=groups,
            dilation=self.dilation[0],
            name="conv2",
        )(y, train)
        if self.squeezed:
            y = SqueezeExcite(self.conv, width=self.squeezed, name="se")(y)
        y = layer(norm=zeros, rectified=False, name="conv3")(y, train)
        if self.stochastic:
            y = drop_path(self, y, drop_rate, train)
        dilates = self.dilation[0] != self.dilation[1]
        if x.shape[-1] != self.features or self.stride != 1 or dilates:
            x = layer(stride=self.stride, rectified=False, name="downsample")(x, train)
        return relu(x + y)


class RegNet(Network):
    """A RegNet. Layers have timm's names: `stem`, `s1` to `s4`, `head.fc`.

    It also has the attributes of `flaxres.models.network.Network`.

    Attributes:
      depths: blocks in each stage; each stage halves the resolution.
      widths: channels of each stage, multiples of the group width or narrower than it.
      group_width: channels of a group of the 3x3.
      se_ratio: inner width of squeeze and excitation as a share of the block's input; 0 is an X,
        without them.
      stem_width: width of the stem's 3x3/2 convolution.
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
    BEYOND_LEAVES: ClassVar[tuple[str, ...]] = ("output_stride",)

    depths: tuple[int, ...] = (1, 1, 4, 7)
    widths: tuple[int, ...] = (24, 56, 152, 368)
    group_width: int = 8
    se_ratio: float = 0.0
    stem_width: int = 32
    output_stride: int = 32

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False, features: bool = False
    ) -> Any:
        self.check(images, output_stride=(self.output_stride, (8, 16, 32)))
        self.check_stages(self.depths, self.widths)
        self.check_groups()
        conv, norm = self.conv(), self.norm()
        x = ConvNorm(self.stem_width, conv, norm, kernel_size=3, stride=2, name="stem")(
            images, train
        )
        maps: dict[str, jax.Array] = {"stem": x}
        stages = zip(self.widths, self.drop_rates(self.depths), self.stage_strides(), strict=True)
        for i, (width, drops, (stride, dilations)) in enumerate(stages, 1):
            block = functools.partial(
                RegNetBlock,
                width,
                self.group_width,
                conv=conv,
                norm=norm,
                stochastic=self.stochastic_depth > 0,
            )
            first = functools.partial(block, stride, dilations, self.squeezed(x.shape[-1]))
            dilation = (dilations[1], dilations[1])
            rest = functools.partial(block, 1, dilation, self.squeezed(width))
            stage = Stage(first, rest, drops, self.scan_blocks, self.remat, name=f"s{i}")
            maps[f"stage{i}"] = x = stage(x, train)
        maps["pooled"] = self.pooled(x)
        return maps if features else self.head(maps["pooled"], train, "head.fc")

    def squeezed(self, channels: int) -> int:
        """Returns the inner width of squeeze and excitation for a block's input, 0 for an X."""
        return max(1, round(self.se_ratio * channels)) if self.se_ratio else 0

    def check_groups(self) -> None:
        """Checks that the groups divide the width of each stage.

        Raises:
          InputError: they don't.
        """
        for width in self.widths:
            if width % min(self.group_width, width):
                raise InputError(
                    f"widths (={self.widths}) must be multiples of group_width "
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
        result, extent = [], -(-side // 2)
        for stride, _ in self.stage_strides():
            extent = -(-extent // stride)
            result.append(extent)
        return result if side else None
