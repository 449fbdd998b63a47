"""Densely connected networks (Huang et al. 2017, "Densely connected convolutional networks")."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from flaxres.models.layers import norm_relu, norm_relu_pool
from flaxres.models.network import Network
from flaxres.models.pooling import anti_alias_pool, average_pool
from flaxres.ops.pool import max_pool

CHOICES = {"stem": ("standard", "deep"), "anti_alias": (None, "blur")}
kaiming_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class DenseLayer(nn.Module):
    """norm, ReLU, 1x1, norm, ReLU, 3x3 (section 3, DenseNet-B).

    The 1x1 has four times `growth` channels, the 3x3 has `growth`. Returns only the channels that
    the layer adds.
    """

    growth: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 k"]:
        for i, (features, size) in enumerate(((4 * self.growth, 1), (self.growth, 3)), 1):
            x = norm_relu(self.norm(name=f"norm{i}"), x, train)
            x = self.conv(features, kernel_size=size, name=f"conv{i}")(x)
        return x


class DenseBlock(nn.Module):
    """Layers that each read all earlier feature maps and add their own (eq. 2)."""

    layers: int
    growth: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 k"]:
        layer = nn.remat(DenseLayer, static_argnums=(2,)) if self.remat else DenseLayer
        for i in range(1, self.layers + 1):
            added = layer(self.growth, self.conv, self.norm, name=f"denselayer{i}")(x, train)
            x = jnp.concatenate([x, added], -1)
        return x


class Transition(nn.Module):
    """norm, ReLU, 1x1 to half the channels, 2x2 average pooling (section 3)."""

    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 k"]:
        y = norm_relu(self.norm(name="norm"), x, train)
        return average_pool(self.conv(x.shape[-1] // 2, kernel_size=1, name="conv")(y), 2, 2)


class Features(nn.Module):
    """Everything before the head.

    Returns feature maps by name, the stem's among them only if `features` is set.
    """

    depths: tuple[int, ...]
    growth: int
    stem: str
    stem_width: int
    anti_alias: str | None
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, features: bool) -> dict[str, jax.Array]:
        deep, blurs = self.stem == "deep", self.anti_alias == "blur"
        widths = (self.growth, self.growth, self.stem_width) if deep else (self.stem_width,)
        last = len(widths) - 1
        for i, width in enumerate(widths):
            stride = 1 if i else 2
            x = self.conv(width, kernel_size=3 if deep else 7, stride=stride, name=f"conv{i}")(x)
            if i < last:
                x = norm_relu(self.norm(name=f"norm{i}"), x, train)
        pool = functools.partial(max_pool, stride=1 if blurs else 2)
        stem, x = norm_relu_pool(self.norm(name=f"norm{last}"), x, train, pool, features)
        x = anti_alias_pool(x, "blur", 2) if blurs else x
        maps = {} if stem is None else {"stem": stem}
        for i, layers in enumerate(self.depths, 1):
            name = f"denseblock{i}"
            x = DenseBlock(layers, self.growth, self.conv, self.norm, self.remat, name=name)(
                x, train
            )
            maps[f"stage{i}"] = x
            if i < len(self.depths):
                x = Transition(self.conv, self.norm, name=f"transition{i}")(x, train)
        return maps | {"last": norm_relu(self.norm(name=f"norm{len(self.depths) + 1}"), x, train)}


class DenseNet(Network):
    """DenseNet-BC. Layers have PyTorch's names: `features.denseblock1.denselayer1`, `classifier`.

    It also has the attributes of `flaxres.models.network.Network`. `stochastic_depth` and
    `scan_blocks` have no effect, since no two layers are equal.

    Attributes:
      depths: layers in each block.
      growth: channels that each layer adds.
      stem: 'standard' is a 7x7/2 convolution; 'deep' is three 3x3 convolutions of widths `growth`,
        `growth` and `stem_width`.
      stem_width: channels before the first block.
      anti_alias: None, or 'blur' pooling in place of the stride of the stem's max pooling
        (Zhang 2019, section 3.2).

    Called as `ResNet` is. `stage1` to `stage4` are the outputs of the dense blocks.

    Examples:
      >>> import flaxres
      >>> model = flaxres.DenseNet(depths=(2, 2), growth=4, num_classes=10)
      >>> images = jax.ShapeDtypeStruct((1, 64, 64, 3), jax.numpy.float32)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape
      (1, 10)
    """

    # Attributes that change the function and none of the leaves.
    BEYOND_LEAVES: ClassVar = ("anti_alias",)

    depths: tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 32
    stem: str = "standard"
    stem_width: int = 64
    anti_alias: str | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False, features: bool = False
    ) -> Any:
        self.check(
            images, **{name: (getattr(self, name), allowed) for name, allowed in CHOICES.items()}
        )
        conv, norm = self.conv(kernel_init=kaiming_fan_in), self.norm()
        stem = (self.stem, self.stem_width, self.anti_alias)
        body = Features(self.depths, self.growth, *stem, conv, norm, self.remat, name="features")
        maps = body(images, train, features)
        maps["pooled"] = self.pooled(maps.pop("last"))
        return maps if features else self.head(maps["pooled"], train, "classifier")

    def stage_layers(self) -> list[str]:
        """Returns the names of the stages' layers, see `Network.stage_layers`."""
        return [f"features.denseblock{i}" for i, _ in enumerate(self.depths, 1)]

    def extents(self, side: int) -> list[int] | None:
        """Returns the extent of each block's map, see `Network.extents`.

        A blur reflects the pixel beside an edge, so there must be two.
        """
        if self.anti_alias == "blur" and side < 3:
            return None
        stem = -(-side // 4)
        result = [stem // 2**i for i in range(len(self.depths))]
        return result if result[-1] else None
