"""ConvNeXt and ConvNeXt V2.

Liu et al. 2022, "A ConvNet for the 2020s"; Woo et al. 2023, "ConvNeXt V2: co-designing and scaling
ConvNets with masked autoencoders".
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float

from flaxres.errors import InputError
from flaxres.models.activations import ACTIVATIONS
from flaxres.models.attention import rounded
from flaxres.models.channel_norms import GlobalResponseNorm, LayerNorm, SimpleNorm
from flaxres.models.network import Nested, Network, Stages
from flaxres.models.stage import Stage
from flaxres.models.stochastic import Dropout, drop_path
from flaxres.ops.norm import by_channel

CHOICES: dict[str, tuple[Any, ...]] = {
    "stem": ("patch", "overlap", "overlap_tiered", "overlap_activated"),
    "norm_kind": ("layer", "simple"),
    "activation": tuple(ACTIVATIONS),
    "output_stride": (8, 16, 32),
}
# Liu et al. 2022, appendix A.1; their truncated normal ends at a hundred deviations.
normal_02 = nn.initializers.normal(0.02)


class Mlp(nn.Module):
    """Two dense layers with an activation between them; layers have timm's names.

    Attributes:
      dense: makes a layer of a number of channels.
      inner: channels between the two.
      response_norm: `GlobalResponseNorm` after the activation, or None.
      activation: by name.
    """

    dense: Callable[..., nn.Module]
    inner: int
    response_norm: Callable[..., nn.Module] | None
    activation: str = "gelu"

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        inner = ACTIVATIONS[self.activation](self.dense(self.inner, name="fc1")(x))
        if self.response_norm is not None:
            inner = self.response_norm(name="grn")(inner)
        y: jax.Array = self.dense(x.shape[-1], name="fc2")(inner)
        return y


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution and an MLP at each pixel (Liu et al. 2022, figure 4).

    Attributes:
      features: channels.
      dilation: of the depthwise convolution.
      layer_scale: initial value of the branch's scales by channel (Touvron et al. 2021, section 2);
        None leaves them out.
      conv, dense, norm: layers with their dtypes bound; `dense` is that of the MLP.
      response_norm, activation: see `Mlp`.
      kernel_size: of the depthwise convolution.
      stochastic: use `drop_rate`, an argument of the call.

    Call: `(N, H, W, features)` -> the same shape.
    """

    features: int
    dilation: int
    layer_scale: float | None
    conv: Callable[..., nn.Module]
    dense: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    response_norm: Callable[..., nn.Module] | None = None
    activation: str = "gelu"
    kernel_size: int = 7
    stochastic: bool = False
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool, drop_rate: Any = 0.0
    ) -> Float[Array, "n h w c"]:
        depthwise = self.conv(
            self.features,
            kernel_size=self.kernel_size,
            groups=self.features,
            dilation=self.dilation,
            name="conv_dw",
        )
        y = self.norm(name="norm")(depthwise(x))
        mlp = Mlp(self.dense, 4 * self.features, self.response_norm, self.activation, name="mlp")
        y = mlp(y)
        if self.layer_scale is not None:
            init = nn.initializers.constant(self.layer_scale)
            gamma = self.param("gamma", init, (self.features,), self.param_dtype)
            y = y * by_channel(gamma.astype(y.dtype), y)
        if self.stochastic:
            y = drop_path(self, y, drop_rate, train)
        return x + y


class Downsampling(nn.Module):
    """A norm and a strided 2x2 convolution between two stages, named `0` and `1`.

    Attributes:
      features: channels of the result.
      stride: 2, or 1 where a dilation takes its place; the image is then padded at its end.
      dilation: of the convolution.
      conv, norm: layers with their dtypes bound.
    """

    features: int
    stride: int
    dilation: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 k"]:
        before = self.dilation // 2
        y: jax.Array = self.conv(
            self.features,
            kernel_size=2,
            stride=self.stride,
            dilation=self.dilation,
            padding=(0, 0) if self.stride == 2 else (before, self.dilation - before),
            name="1",
        )(self.norm(name="0")(x))
        return y


class ConvNeXtStage(nn.Module):
    """The blocks of one width, after a `Downsampling` in all stages but the first."""

    downsampling: Callable[..., nn.Module] | None
    blocks: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 k"]:
        if self.downsampling is not None:
            x = self.downsampling(name="downsample")(x)
        y: jax.Array = self.blocks(name="blocks")(x, train)
        return y


class Stem(nn.Module):
    """The convolutions before the first stage and a norm, named by index."""

    kind: str
    width: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    activation: str

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 k"]:
        y: jax.Array
        if self.kind == "patch":
            x = self.conv(self.width, kernel_size=4, stride=4, padding=(0, 0), name="0")(x)
            y = self.norm(name="1")(x)
            return y
        tiered = self.kind == "overlap_tiered"
        first = rounded(self.width // 2, share=0.9) if tiered else self.width
        x = self.conv(first, kernel_size=3, stride=2, name="0")(x)
        activated = self.kind == "overlap_activated"
        x = ACTIVATIONS[self.activation](x) if activated else x
        names = ("2", "3") if activated else ("1", "2")
        y = self.norm(name=names[1])(
            self.conv(self.width, kernel_size=3, stride=2, name=names[0])(x)
        )
        return y


class Head(nn.Module):
    """A norm, a dense layer with a GELU, dropout and the classes; layers have timm's names.

    Attributes:
      norm: makes the norm, or None.
      hidden: makes the dense layer, or None.
      dropout: rate before the classes.
      classify: makes the layer of the classes, or None.

    Call: pooled features -> features before the classes, and logits or the same features.
    """

    norm: Callable[..., nn.Module] | None
    hidden: Callable[..., nn.Module] | None
    dropout: float
    classify: Callable[..., nn.Module] | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "n c"], train: bool
    ) -> tuple[Float[Array, "n k"], Float[Array, "n classes"]]:
        if self.norm is not None:
            x = self.norm(name="norm")(x)
        if self.hidden is not None:
            x = nn.gelu(Nested(self.hidden, "fc", name="pre_logits")(x), approximate=False)
        if self.classify is None:
            return x, x
        y = Dropout(self.dropout)(x, train) if self.dropout else x
        return x, self.classify(name="fc")(y)


class ConvNeXt(Network):
    """A ConvNeXt, or with `response_norm` a ConvNeXt V2. Layers have timm's names.

    It also has the attributes of `flaxres.models.network.Network`; those of batch norms have no
    effect.

    Attributes:
      depths: blocks in each stage.
      widths: channels of each stage; stages after the first halve the resolution.
      stem: 'patch' is a 4x4/4 convolution, 'overlap' two 3x3/2; 'overlap_tiered' makes the first
        of them half as wide, 'overlap_activated' puts an activation between them.
      convolutions: the MLPs are 1x1 convolutions, and not dense layers. The function is the same;
        timm's weights of small networks have these shapes.
      layer_scale: initial value of each branch's scales by channel; None leaves them out (V2).
      response_norm: global response normalisation in each MLP (V2).
      norm_first: normalise the last map before the global pooling, and not its means.
      hidden: width of a dense layer before the classes; 0 leaves it out.
      epsilon: of the layer norms.
      norm_kind: 'layer', or 'simple' (`SimpleNorm`).
      activation: 'gelu', 'gelu_tanh', 'silu' or 'relu'.
      kernel_size: of the depthwise convolutions, odd, or one for those of each stage.
      output_stride: 32, or 16 or 8 with dilated convolutions in the last stages.

    Called as `ResNet` is. Without batch norm there are no `batch_stats`.

    Raises:
      InputError: as `ResNet`.

    Examples:
      >>> import flaxres
      >>> model = flaxres.create_model("convnext_tiny", num_classes=10)
      >>> images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape
      (1, 10)
    """

    # Attributes that change the function and none of the leaves.
    BEYOND_LEAVES: ClassVar[tuple[str, ...]] = ("epsilon", "activation", "output_stride")

    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    stem: str = "patch"
    convolutions: bool = False
    layer_scale: float | None = 1e-6
    response_norm: bool = False
    norm_first: bool = False
    hidden: int = 0
    epsilon: float = 1e-6
    norm_kind: str = "layer"
    activation: str = "gelu"
    kernel_size: int | tuple[int, ...] = 7
    output_stride: int = 32

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False, features: bool = False
    ) -> Any:
        choices = {name: (getattr(self, name), allowed) for name, allowed in CHOICES.items()}
        self.check(images, **choices)
        self.check_stages(self.depths, self.widths)
        sizes = self.kernel_sizes()
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = self.conv(use_bias=True, kernel_init=normal_02)
        kind = SimpleNorm if self.norm_kind == "simple" else LayerNorm
        norm = functools.partial(kind, self.epsilon, **dtypes)
        x = Stem(self.stem, self.widths[0], conv, norm, self.activation, name="stem")(images)
        maps: dict[str, jax.Array] = {"stem": x}
        block = functools.partial(
            ConvNeXtBlock,
            layer_scale=self.layer_scale,
            conv=conv,
            dense=functools.partial(conv, kernel_size=1)
            if self.convolutions
            else functools.partial(nn.Dense, kernel_init=normal_02, **dtypes),
            norm=norm,
            response_norm=functools.partial(GlobalResponseNorm, **dtypes)
            if self.response_norm
            else None,
            activation=self.activation,
            stochastic=self.stochastic_depth > 0,
            param_dtype=self.param_dtype,
        )
        stages: list[Callable[..., nn.Module]] = []
        rows = zip(self.widths, self.drop_rates(self.depths), self.stage_strides(), strict=True)
        for width, rates, (stride, (previous, dilation)) in rows:
            downsampling = functools.partial(Downsampling, width, stride, previous, conv, norm)
            size = sizes[len(stages)]
            same = functools.partial(block, width, dilation, kernel_size=size)
            blocks = functools.partial(Stage, same, same, rates, self.scan_blocks, self.remat)
            stages.append(
                functools.partial(ConvNeXtStage, downsampling if stages else None, blocks)
            )
        outputs = Stages(tuple(stages), name="stages")(x, train)
        maps |= {f"stage{i}": output for i, output in enumerate(outputs, 1)}
        last = norm(name="norm_pre")(outputs[-1]) if self.norm_first else outputs[-1]
        pooled = self.pooled(last)
        wide: dict[str, Any] = dtypes | {"dtype": pooled.dtype}
        hidden = functools.partial(nn.Dense, self.hidden, kernel_init=normal_02, **wide)
        maps["pooled"], logits = Head(
            None if self.norm_first else functools.partial(kind, self.epsilon, **wide),
            hidden if self.hidden else None,
            self.dropout,
            self.classifier(pooled.dtype) if self.num_classes else None,
            name="head",
        )(pooled, train)
        return maps if features else logits

    def kernel_sizes(self) -> tuple[int, ...]:
        """Returns the kernel size of each stage's depthwise convolutions.

        Raises:
          InputError: one is not odd, or there is not one for each stage.
        """
        one = self.kernel_size
        sizes = (one,) * len(self.depths) if isinstance(one, int) else tuple(one)
        if len(sizes) != len(self.depths) or not all(size > 0 and size % 2 for size in sizes):
            raise InputError(
                f"kernel_size (={self.kernel_size}): the rule is an odd number, or one for each "
                f"of the {len(self.depths)} stages"
            )
        return sizes

    @property
    def head_kernel_init(self) -> Initializer:
        """The initialiser of all kernels (Liu et al. 2022, appendix A.1)."""
        return normal_02

    def stage_strides(self) -> list[tuple[int, tuple[int, int]]]:
        """Returns each stage's stride and dilations, see `Network.strides_and_dilations`."""
        strides = [2 if i else 1 for i, _ in enumerate(self.depths)]
        return self.strides_and_dilations(strides, 4, self.output_stride)

    def extents(self, side: int) -> list[int] | None:
        """Returns the extent of each stage's map, see `Network.extents`.

        Convolutions that stride by their size drop the pixels of an incomplete step.
        """
        extent = side // 4 if self.stem == "patch" else -(-side // 4)
        result = []
        for stride, _ in self.stage_strides():
            extent //= stride
            result.append(extent)
        return result if result[-1] else None
