"""The residual network (He et al. 2016, "Deep residual learning for image recognition") and its rows for ImageNet and CIFAR."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flaxres.errors import InputError, unknown
from flaxres.models.blocks import BRANCHES, ResidualBlock, Stage
from flaxres.models.layers import BatchNorm, Conv, head_init, max_pool

STEMS = ("standard", "small")
SHORTCUTS = ("projection", "zero_pad")


class ResNet(nn.Module):
    """A residual network. Names of layers are PyTorch's: `conv1`, `bn1`, `layer1` ... , `fc`.

    Attributes:
      depths: blocks a stage.
      block: 'basic' or 'bottleneck'.
      widths: inner width of each stage's blocks; stages after the first halve the resolution.
      num_classes: outputs of the head; 0 returns the pooled features.
      stem: 'standard' is the 7x7/2 convolution and the 3x3/2 max pooling, 'small' a 3x3 convolution for small images.
      shortcut: 'projection' (option B) or 'zero_pad' (option A, no parameters).
      v1: the stride on a bottleneck's first 1x1 (He et al. 2016); the default, v1.5, has it on the 3x3.
      dtype: of the computation; param_dtype: of the parameters. Logits are never narrower than float32.
      bn_group, axis_name, bn_momentum: see `flaxres.models.layers.BatchNorm`.
      dropout: rate before the head.

    Call: images `(N, H, W, C)`, float, already normalised -> logits `(N, num_classes)`. `train=True` uses batch statistics
    and needs `mutable=["batch_stats"]` (and `rngs={"dropout": key}` with dropout). `features=True` returns instead a dictionary
    of `stem`, `stage1`, ..., `pooled`: the activations before the pooling of the stem, after each stage and after the global pooling.

    Raises InputError for an unknown attribute value or images of another rank or an integer dtype.
    """

    depths: tuple[int, ...]
    block: str = "bottleneck"
    widths: tuple[int, ...] = (64, 128, 256, 512)
    num_classes: int = 1000
    stem: str = "standard"
    shortcut: str = "projection"
    v1: bool = False
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    bn_group: int | None = None
    axis_name: str | None = None
    bn_momentum: float = 0.9
    dropout: float = 0.0

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, features: bool = False) -> Any:
        self.check(images)
        conv = functools.partial(Conv, dtype=self.dtype, param_dtype=self.param_dtype)
        norm = functools.partial(
            BatchNorm,
            group=self.bn_group,
            axis_name=self.axis_name,
            momentum=self.bn_momentum,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        size, stride = (7, 2) if self.stem == "standard" else (3, 1)
        x = conv(self.widths[0], kernel_size=size, stride=stride, name="conv1")(images)
        x = nn.relu(norm(name="bn1")(x, use_running_average=not train))
        maps = {"stem": x}
        if self.stem == "standard":
            x = max_pool(x)
        for i, (blocks, width) in enumerate(zip(self.depths, self.widths, strict=True), 1):
            block = functools.partial(ResidualBlock, self.block, width, shortcut=self.shortcut, conv=conv, norm=norm, v1=self.v1)
            x = Stage(blocks, 1 if i == 1 else 2, block, name=f"layer{i}")(x, train)
            maps[f"stage{i}"] = x
        wide = jnp.promote_types(jnp.float32, self.dtype)
        x = x.mean((1, 2), dtype=wide)
        maps["pooled"] = x
        if features:
            return maps
        if not self.num_classes:
            return x
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        head = nn.Dense(self.num_classes, dtype=wide, param_dtype=self.param_dtype, kernel_init=head_init, name="fc")
        return head(x)

    def check(self, images: jax.Array) -> None:
        for kind, value, choices in (("block", self.block, BRANCHES), ("stem", self.stem, STEMS), ("shortcut", self.shortcut, SHORTCUTS)):
            if value not in choices:
                raise unknown(kind, value, choices)
        if images.ndim != 4:
            raise InputError(f"images have shape {images.shape}: the rule is (N, H, W, C); add a batch axis with images[None]")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise InputError(f"images are {images.dtype}: the rule is float in the range of the weight's preprocessing; normalise them first")
        if images.shape[1] <= 4 < images.shape[3]:
            raise InputError(f"images have shape {images.shape}, which looks like NCHW: transpose them to NHWC with images.transpose(0, 2, 3, 1)")


# He et al. 2016, table 1 and, for 200 layers, He et al. 2016, "Identity mappings in deep residual networks", section 5.
ResNet18 = functools.partial(ResNet, depths=(2, 2, 2, 2), block="basic")
ResNet34 = functools.partial(ResNet, depths=(3, 4, 6, 3), block="basic")
ResNet50 = functools.partial(ResNet, depths=(3, 4, 6, 3))
ResNet101 = functools.partial(ResNet, depths=(3, 4, 23, 3))
ResNet152 = functools.partial(ResNet, depths=(3, 8, 36, 3))
ResNet200 = functools.partial(ResNet, depths=(3, 24, 36, 3))

# He et al. 2016, section 4.2: 6n + 2 layers, n blocks a stage, option A shortcuts, ten classes.
cifar = functools.partial(ResNet, block="basic", widths=(16, 32, 64), stem="small", shortcut="zero_pad", num_classes=10)
ResNet20 = functools.partial(cifar, depths=(3, 3, 3))
ResNet32 = functools.partial(cifar, depths=(5, 5, 5))
ResNet44 = functools.partial(cifar, depths=(7, 7, 7))
ResNet56 = functools.partial(cifar, depths=(9, 9, 9))
ResNet110 = functools.partial(cifar, depths=(18, 18, 18))
