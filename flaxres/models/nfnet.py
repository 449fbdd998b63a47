"""Residual networks without norms: NF-ResNets, NF-RegNets and NFNets.

Brock et al. 2021, "Characterizing signal propagation to close the performance gap in unnormalized
ResNets" (NF-ResNets, NF-RegNets) and "High-performance large-scale image recognition without
normalization" (NFNets). Widths and options are timm's.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float

from flaxres.errors import InputError
from flaxres.models.activations import ACTIVATIONS, GAINS
from flaxres.models.attention import EfficientChannelAttention, SqueezeExcite, rounded
from flaxres.models.blocks import Downsample
from flaxres.models.network import Network, Stages, extents_of
from flaxres.models.stage import Stage
from flaxres.models.stochastic import drop_path
from flaxres.ops.pool import max_pool

CHOICES: dict[str, tuple[Any, ...]] = {
    "stem": ("standard", "single", "quadruple"),
    "attention": (None, "se", "eca"),
    "activation": tuple(GAINS),
    "output_stride": (8, 16, 32),
}
he_fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
# Attention halves a signal: "High-performance ...", appendix C.
ATTENTION_GAIN = 2.0


def convolved(
    conv: Callable[..., nn.Module], x: Float[Array, "n h w c"], same: bool, **attributes: Any
) -> Float[Array, "n h2 w2 k"]:
    """Applies a 3x3 convolution, with `same` padded at its stride as by TensorFlow's 'SAME'.

    There an even side has its only pixel of padding at the end.
    """
    stride = attributes.get("stride", 1)
    if same and stride > 1:
        missing = [max((-(-side // stride) - 1) * stride + 3 - side, 0) for side in x.shape[1:3]]
        edges = [(pixels // 2, pixels - pixels // 2) for pixels in missing]
        x = jnp.pad(x, ((0, 0), *edges, (0, 0)))
        attributes["padding"] = (0, 0)
    y: jax.Array = conv(kernel_size=3, **attributes)(x)
    return y


def activated_with_gain(name: str, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Computes an activation, times the gain that keeps the variance of its input."""
    return ACTIVATIONS[name](x) * GAINS[name]


class NormFreeBlock(nn.Module):
    """`shortcut + alpha * F(scale * act(x))` ("Characterizing ...", section 3).

    `scale` is one over the standard deviation that the block's input has at the start of training.
    Where the shape changes, the shortcut is a projection of the branch's input. Layers have timm's
    names.

    Attributes:
      features: channels of the result.
      inner: channels of the 3x3 convolutions.
      groups: of the 3x3 convolutions.
      stride: of the first 3x3.
      dilation: of the first 3x3, and of what comes after it.
      conv: convolution with its options bound.
      act: activation.
      alpha: growth of the standard deviation by a block.
      attention: attention module, or None.
      inverted: the attention comes after the 3x3, and not at the end of the branch.
      second_convolution: another 3x3.
      same_padding: see `convolved`.
      skip_gain: a learned gain of the branch, zero at first.
      stochastic: use `drop_rate`, an argument of the call.

    Call: `(N, H, W, C)` -> `(N, H / stride, W / stride, features)`.
    """

    features: int
    inner: int
    groups: int
    stride: int
    dilation: tuple[int, int]
    conv: Callable[..., nn.Module]
    act: Callable[[jax.Array], jax.Array]
    alpha: float
    attention: Callable[..., nn.Module] | None = None
    inverted: bool = False
    second_convolution: bool = False
    same_padding: bool = False
    skip_gain: bool = False
    stochastic: bool = False
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool, drop_rate: Any = 0.0, scale: Any = 1.0
    ) -> Float[Array, "n h2 w2 k"]:
        y = self.act(x)
        y = y * jnp.asarray(scale, y.dtype)
        first, rest = self.dilation
        if x.shape[-1] != self.features or self.stride != 1 or first != rest:
            project = Downsample(
                self.features, self.stride, True, self.conv, rest > 1, name="downsample"
            )
            x = project(y)
        y = self.act(self.conv(self.inner, kernel_size=1, name="conv1")(y))
        middle = functools.partial(
            convolved, self.conv, same=self.same_padding, features=self.inner, groups=self.groups
        )
        y = middle(y, stride=self.stride, dilation=first, name="conv2")
        if self.second_convolution:
            y = middle(self.act(y), dilation=rest, name="conv2b")
        if self.attention is not None and self.inverted:
            y = ATTENTION_GAIN * self.attention(name="attn")(y)
        ends = {} if self.skip_gain else {"gain_init": nn.initializers.zeros_init()}
        y = self.conv(self.features, kernel_size=1, **ends, name="conv3")(self.act(y))
        if self.attention is not None and not self.inverted:
            y = ATTENTION_GAIN * self.attention(name="attn_last")(y)
        if self.stochastic:
            y = drop_path(self, y, drop_rate, train)
        if self.skip_gain:
            zero = nn.initializers.zeros_init()
            y = y * self.param("skipinit_gain", zero, (), self.param_dtype).astype(y.dtype)
        return y * self.alpha + x


class NormFreeStem(nn.Module):
    """The convolutions before the first block, without an activation after the last one."""

    kind: str
    width: int
    conv: Callable[..., nn.Module]
    act: Callable[[jax.Array], jax.Array]
    same_padding: bool

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 k"]:
        if self.kind == "standard":
            y: jax.Array = self.conv(self.width, kernel_size=7, stride=2, name="conv")(x)
            return y
        if self.kind == "single":
            return convolved(
                self.conv, x, self.same_padding, features=self.width, stride=2, name="conv"
            )
        for i, (part, stride) in enumerate(((8, 2), (4, 1), (2, 1), (1, 2)), 1):
            x = self.act(x) if i > 1 else x
            x = convolved(
                self.conv,
                x,
                self.same_padding,
                features=self.width // part,
                stride=stride,
                name=f"conv{i}",
            )
        return x


class NFNet(Network):
    """A residual network without norms.

    Its convolutions have standardised kernels and biases. Layers have timm's names: `stem`,
    `stages.0.0`, ..., `final_conv`, `head.fc`.

    It also has the attributes of `flaxres.models.network.Network`; those of batch norms have no
    effect.

    Attributes:
      depths: blocks in each stage.
      widths: channels of each stage.
      group_width: channels of a group of the 3x3 convolutions, all of them where they are fewer;
        None is one group.
      expansion: width of the 3x3 convolutions as a multiple of the block's, rounded to multiples
        of 8 and of the groups.
      inverted: NF-RegNets' blocks: `expansion` multiplies the block's input (1 in the first block),
        and the attention comes after the 3x3.
      second_convolution: another 3x3 in each block (NFNets).
      stem: 'standard' (7x7/2, max pooling), 'single' (3x3/2) or 'quadruple' (four 3x3, two of them
        strided).
      stem_width: width of the stem's result.
      attention: None, 'se' (of `se_ratio`) or 'eca'.
      activation: 'relu', 'silu' or 'gelu'.
      gain_in_activation: multiply the activations by their gains, as the authors do, and not the
        kernels.
      same_padding: strided 3x3 convolutions are padded as by TensorFlow (the authors' weights).
      skip_gain: a learned gain for each branch, zero at first (SkipInit, De & Smith 2020); without
        it the gains of the branch's last kernel start at zero.
      alpha: growth of the standard deviation by a block.
      last_width: channels of a 1x1 convolution before the pooling; 0 leaves it out.
      output_stride: 32, or 16 or 8 with dilated convolutions in the last stages.

    Called as `ResNet` is. There are no `batch_stats`. `stage1` to `stage4` are raw sums.

    Raises:
      InputError: as `ResNet`; or `group_width` is below 1, or the stem is too narrow.

    Examples:
      >>> import flaxres
      >>> model = flaxres.create_model("dm_nfnet_f0", num_classes=10)
      >>> images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape
      (1, 10)
    """

    # Attributes that change the function and none of the leaves.
    BEYOND_LEAVES: ClassVar[tuple[str, ...]] = (
        *("activation", "gain_in_activation", "same_padding"),
        *("alpha", "output_stride"),
    )

    depths: tuple[int, ...] = (1, 2, 6, 3)
    widths: tuple[int, ...] = (256, 512, 1536, 1536)
    group_width: int | None = 128
    expansion: float = 0.5
    inverted: bool = False
    second_convolution: bool = True
    stem: str = "quadruple"
    stem_width: int = 128
    attention: str | None = "se"
    se_ratio: float = 0.5
    activation: str = "gelu"
    gain_in_activation: bool = False
    same_padding: bool = False
    skip_gain: bool = False
    alpha: float = 0.2
    last_width: int = 3072
    output_stride: int = 32

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False, features: bool = False
    ) -> Any:
        choices = {name: (getattr(self, name), allowed) for name, allowed in CHOICES.items()}
        self.check(images, **choices)
        self.check_stages(self.depths, self.widths)
        if self.stem == "quadruple" and self.stem_width < 8:
            raise InputError(
                f"stem_width (={self.stem_width}): the rule of the stem 'quadruple', whose first "
                "convolution is an eighth as wide, is >= 8"
            )
        gain = GAINS[self.activation]
        conv = self.conv(
            use_bias=True,
            standardise=1e-5,
            gamma=1.0 if self.gain_in_activation else gain,
            kernel_init=he_fan_in,
        )
        act = self.scaled_activation()
        stem = NormFreeStem(self.stem, self.stem_width, conv, act, self.same_padding, name="stem")
        x = stem(images)
        maps: dict[str, jax.Array] = {"stem": x}
        if self.stem == "standard":
            x = max_pool(x)
        outputs = Stages(self.stage_makers(conv), name="stages")(x, train)
        maps |= {f"stage{i}": output for i, output in enumerate(outputs, 1)}
        x = outputs[-1]
        if self.last_width:
            x = conv(self.last_width, kernel_size=1, name="final_conv")(x)
        maps["pooled"] = self.pooled(act(x))
        return maps if features else self.head(maps["pooled"], train, "head.fc")

    def stage_makers(self, conv: Callable[..., nn.Module]) -> tuple[Callable[..., nn.Module], ...]:
        """Returns what makes each stage.

        Args:
          conv: convolution with its options bound.
        """
        block = functools.partial(
            NormFreeBlock,
            conv=conv,
            act=self.scaled_activation(),
            alpha=self.alpha,
            attention=self.attention_module(),
            inverted=self.inverted,
            second_convolution=self.second_convolution,
            same_padding=self.same_padding,
            skip_gain=self.skip_gain,
            stochastic=self.stochastic_depth > 0,
            param_dtype=self.param_dtype,
        )
        result: list[Callable[..., nn.Module]] = []
        channels, variance = self.stem_width, 1.0
        rows = zip(self.widths, self.drop_rates(self.depths), self.stage_strides(), strict=True)
        for width, rates, (stride, dilations) in rows:
            expansion = 1.0 if self.inverted and not result else self.expansion
            entry = self.inner(channels if self.inverted else width, expansion)
            first = functools.partial(block, width, *entry, stride, dilations)
            dilation = (dilations[1], dilations[1])
            rest = functools.partial(block, width, *self.inner(width, self.expansion), 1, dilation)
            # A projection has variance one, and each block adds alpha^2 to it.
            variances = [variance, *(1 + i * self.alpha**2 for i in range(1, len(rates)))]
            scales = tuple(value**-0.5 for value in variances)
            result.append(
                functools.partial(
                    Stage, first, rest, rates, self.scan_blocks, self.remat, scales=scales
                )
            )
            channels, variance = width, 1 + len(rates) * self.alpha**2
        return tuple(result)

    def scaled_activation(self) -> Callable[[jax.Array], jax.Array]:
        """Returns the activation, with its gain if the kernels don't have it."""
        if self.gain_in_activation:
            return functools.partial(activated_with_gain, self.activation)
        return ACTIVATIONS[self.activation]

    def attention_module(self) -> Callable[..., nn.Module] | None:
        """Returns the attention module of the blocks, or None."""
        if self.attention == "se":
            return functools.partial(SqueezeExcite, self.conv(kernel_init=he_fan_in), self.se_ratio)
        if self.attention == "eca":
            return functools.partial(EfficientChannelAttention, None, self.dtype, self.param_dtype)
        return None

    def inner(self, width: int, expansion: float) -> tuple[int, int]:
        """Returns the channels of a block's 3x3 convolutions, and their groups.

        Raises:
          InputError: `group_width` is below 1.
        """
        inner = rounded(width * expansion, share=0.9)
        if self.group_width is None:
            return inner, 1
        if self.group_width < 1:
            raise InputError(
                f"group_width (={self.group_width}): the rule is >= 1; None is one group"
            )
        group = min(self.group_width, inner)
        return inner // group * group, inner // group

    def stage_strides(self) -> list[tuple[int, tuple[int, int]]]:
        """Returns each stage's stride and dilations, see `Network.strides_and_dilations`."""
        reached = 2 if self.stem == "single" else 4
        strides = [2 if i or reached == 2 else 1 for i, _ in enumerate(self.depths)]
        return self.strides_and_dilations(strides, reached, self.output_stride)

    def extents(self, side: int) -> list[int] | None:
        """Returns the extent of each stage's map, see `Network.extents`."""
        first = -(-side // (2 if self.stem == "single" else 4))
        return extents_of(first, [stride for stride, _ in self.stage_strides()])
