"""Image towers of CLIP's ResNets (Radford et al. 2021, "Learning transferable visual models from
natural language supervision", section 2.4)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float

from flaxres.errors import InputError
from flaxres.models.activations import relu
from flaxres.models.layers import ConvNorm
from flaxres.models.network import Nested, Network, Stages
from flaxres.models.pooling import average_pool, shrink_average
from flaxres.models.stage import Stage
from flaxres.models.stochastic import Dropout, drop_path

HEAD_WIDTH = 64


class PooledBottleneck(nn.Module):
    """A bottleneck that strides by averages, in its branch and in its shortcut.

    Layers have timm's names.

    Attributes:
      features: channels of the result, four times those of the 3x3.
      stride: 1 or 2.
      conv, norm: layers with their dtypes bound.
      stochastic: use `drop_rate`, an argument of the call.

    Call: `(N, H, W, C)` -> `(N, H / stride, W / stride, features)`.
    """

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    stochastic: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool, drop_rate: Any = 0.0
    ) -> Float[Array, "n h2 w2 k"]:
        layer = functools.partial(ConvNorm, conv=self.conv, norm=self.norm)
        zeros = functools.partial(self.norm, scale_init=nn.initializers.zeros_init())
        y = layer(self.features // 4, name="conv1_1x1")(x, train)
        y = layer(self.features // 4, kernel_size=3, name="conv2_kxk")(y, train)
        if self.stride > 1:
            y = average_pool(y, self.stride, self.stride)
        y = layer(self.features, norm=zeros, activation=None, name="conv3_1x1")(y, train)
        if self.stochastic:
            y = drop_path(self, y, drop_rate, train)
        if x.shape[-1] != self.features or self.stride > 1:
            x = shrink_average(x, self.stride) if self.stride > 1 else x
            project = functools.partial(layer, self.features, activation=None)
            x = Nested(project, "conv", name="shortcut")(x, train)
        return relu(y + x)


class AveragingStem(nn.Module):
    """Three 3x3 convolutions; the map that it returns is still to be averaged."""

    width: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 k"]:
        for i, width in enumerate((self.width, self.width, 2 * self.width), 1):
            layer = ConvNorm(
                width, self.conv, self.norm, 3, stride=2 if i == 1 else 1, name=f"conv{i}"
            )
            x = layer(x, train)
        return x


def resized_positions(
    positions: Float[Array, "tokens c"], height: int, width: int | None = None
) -> Float[Array, "tokens2 c"]:
    """Interpolates the embedding of the pixels of a square map for another map.

    The first embedding is that of the mean, and stays. Cubic, as in timm.
    """
    extent, channels = round((positions.shape[0] - 1) ** 0.5), positions.shape[1]
    grid = jnp.asarray(positions[1:]).reshape(extent, extent, channels)
    resized = jax.image.resize(grid, (height, width or height, channels), "cubic")
    return jnp.concatenate([positions[:1], resized.reshape(-1, channels)])


class AttentionPool(nn.Module):
    """Pools by attention: the mean pixel asks all pixels and itself (section 2.4).

    Attributes:
      extent: height and width of the map that `pos_embed` is for; it is resized for others.
      dtype: of the computation and the result.
      dropout: rate before the classes.
      classify: makes the layer of the classes, or None.

    Call: `(N, H, W, C)` -> features `(N, C)`, and logits or the same features.
    """

    extent: int
    dtype: Dtype
    param_dtype: Dtype
    dropout: float
    classify: Callable[..., nn.Module] | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool
    ) -> tuple[Float[Array, "n c"], Float[Array, "n k"]]:
        images, height, width, channels = x.shape
        init = nn.initializers.truncated_normal(channels**-0.5)
        pixels = x.astype(self.dtype).reshape(images, height * width, channels)
        tokens = jnp.concatenate([pixels.mean(1, keepdims=True), pixels], axis=1)
        tokens = tokens + self.positions(height, width, channels)[None]
        dense = functools.partial(
            nn.Dense, channels, dtype=self.dtype, param_dtype=self.param_dtype, kernel_init=init
        )
        heads = (images, -1, channels // HEAD_WIDTH, HEAD_WIDTH)
        query = dense(name="q")(tokens[:, :1]).reshape(heads) * HEAD_WIDTH**-0.5
        key, value = (dense(name=name)(tokens).reshape(heads) for name in ("k", "v"))
        weights = nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", query, key))
        pooled = jnp.einsum("nhqk,nkhd->nqhd", weights, value).reshape(images, channels)
        if self.classify is None:
            return pooled, pooled
        y = Dropout(self.dropout)(pooled, train) if self.dropout else pooled
        return pooled, self.classify(name="proj")(y)

    def positions(self, height: int, width: int, channels: int) -> Float[Array, "tokens c"]:
        """Returns the embedding of the mean and of each pixel of a map."""
        shape = (self.extent**2 + 1, channels)
        init = nn.initializers.truncated_normal(channels**-0.5)
        positions = self.param("pos_embed", init, shape, self.param_dtype).astype(self.dtype)
        if (height, width) == (self.extent, self.extent):
            return positions
        return resized_positions(positions, height, width)


class CLIPResNet(Network):
    """The image tower of a CLIP ResNet; its classes are the coordinates of the embedding.

    Layers have timm's names: `stem`, `stages.0.0`, ..., `head`.

    It also has the attributes of `flaxres.models.network.Network`.

    Attributes:
      depths: blocks in each stage.
      widths: channels of each stage; stages after the first halve the resolution.
      stem_width: width of the first of the stem's three convolutions.
      attention_pool: pool by attention, and not by averaging.
      image_size: side of the images that the positions of the attention are learned for. They are
        interpolated for others.

    Called as `ResNet` is. `pooled` is the result of the attention, before the projection.

    Raises:
      InputError: as `ResNet`; or the last width is no multiple of a head's 64.

    Examples:
      >>> import flaxres
      >>> model = flaxres.create_model("resnet50_clip")
      >>> images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape
      (1, 1024)
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    stem_width: int = 32
    attention_pool: bool = True
    image_size: int = 224

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False, features: bool = False
    ) -> Any:
        self.check(images)
        self.check_stages(self.depths, self.widths)
        self.check_heads()
        conv, norm = self.conv(), self.norm()
        x = AveragingStem(self.stem_width, conv, norm, name="stem")(images, train)
        maps: dict[str, jax.Array] = {"stem": x}
        block = functools.partial(
            PooledBottleneck, conv=conv, norm=norm, stochastic=self.stochastic_depth > 0
        )
        stages: list[Callable[..., nn.Module]] = []
        for width, rates in zip(self.widths, self.drop_rates(self.depths), strict=True):
            first = functools.partial(block, width, 2 if stages else 1)
            rest = functools.partial(block, width, 1)
            stages.append(
                functools.partial(Stage, first, rest, rates, self.scan_blocks, self.remat)
            )
        outputs = Stages(tuple(stages), name="stages")(average_pool(x, 2, 2), train)
        maps |= {f"stage{i}": output for i, output in enumerate(outputs, 1)}
        mean = self.pooled(outputs[-1])
        if not self.attention_pool:
            maps["pooled"] = mean
            return maps if features else self.head(mean, train, "head.fc")
        extents = self.extents(self.image_size)
        pool = AttentionPool(
            extents[-1] if extents else 1,
            mean.dtype,
            self.param_dtype,
            self.dropout,
            self.classifier(mean.dtype) if self.num_classes else None,
            name="head",
        )
        maps["pooled"], logits = pool(outputs[-1], train)
        return maps if features else logits

    def check_heads(self) -> None:
        """Checks the attributes of the attention.

        Raises:
          InputError: one of them does not fit.
        """
        if not self.attention_pool:
            return
        if not self.widths or self.widths[-1] % HEAD_WIDTH:
            raise InputError(
                f"widths (={self.widths}): the last one must be a multiple of {HEAD_WIDTH}, the "
                "width of an attention head"
            )
        if self.extents(self.image_size) is None:
            near = [side for side in range(1, 2 * self.image_size) if self.extents(side)]
            near.sort(key=lambda side: abs(side - self.image_size))
            raise InputError(
                f"image_size (={self.image_size}): the rule is a side that the strides halve, such "
                f"as {near[0] if near else 2 ** (len(self.depths) + 1)}"
            )

    def extents(self, side: int) -> list[int] | None:
        """Returns the extent of each stage's map, or None; see `Network.extents`.

        An average of two pixels drops an odd last one, which the shortcut keeps.
        """
        result = [-(-side // 2) // 2]
        for _ in self.depths[1:]:
            if result[-1] % 2:
                return None
            result.append(result[-1] // 2)
        return result if result[-1] else None
