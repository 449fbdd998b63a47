"""The base class of all networks: shared attributes, checks of the input, and the head."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float, Shaped

from flaxres.errors import InputError, unknown
from flaxres.models.group_norms import EvoNorm, GroupNorm
from flaxres.models.layers import BatchNorm, Conv, head_init
from flaxres.models.stochastic import Dropout
from flaxres.ops.norm import at_least_float32

# The meaning of 0 for whole numbers of networks; all others are at least 1.
ZERO = {
    "num_classes": "returns pooled features",
    "hidden": "leaves the layer out",
    "last_width": "leaves the layer out",
}


class Nested(nn.Module):
    """Nest a module one level down under `child`, to match the names in weight files."""

    module: Callable[..., nn.Module]
    child: str

    @nn.compact
    def __call__(self, *arguments: Any) -> Any:
        return self.module(name=self.child)(*arguments)


class Stages(nn.Module):
    """Run modules named `0`, `1`, ... in order, and return the output of each."""

    stages: tuple[Callable[..., nn.Module], ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> list[jax.Array]:
        outputs = []
        for i, stage in enumerate(self.stages):
            x = stage(name=str(i))(x, train)
            outputs.append(x)
        return outputs


def extents_of(first: int, strides: Iterable[int]) -> list[int] | None:
    """Returns the extents of maps by their strides, each rounded up; None if `first` is 0.

    Examples:
      >>> extents_of(7, [1, 2, 2])
      [7, 4, 2]
    """
    result = list(itertools.accumulate(strides, lambda side, n: -(-side // n), initial=first))
    return result[1:] if first else None


# Attributes with a number for each stage, and probabilities.
STAGES, RATES = ("depths", "widths"), ("dropout", "stochastic_depth")


def _all_positive(numbers: Sequence[Any]) -> bool:
    """Returns whether there are numbers, all of them whole and above 0."""
    return len(numbers) > 0 and all(isinstance(n, int | np.integer) and n > 0 for n in numbers)


class Network(nn.Module):
    """The attributes that every network has.

    Attributes:
      num_classes: outputs of the head; 0 returns the pooled features.
      in_channels: channels of the images.
      dtype: dtype of the computation; logits are never narrower than float32.
      param_dtype: dtype of the parameters.
      bn_group, axis_name, bn_momentum: see `flaxres.models.layers.BatchNorm`.
      bn_frozen: train with fixed statistics.
      dropout: dropout rate before the head.
      head_bias: initial value of the head's biases.
      stochastic_depth: drop rate of the last block; rates grow linearly from 0 at the first block
        (Huang et al. 2016).
      remat: recompute activations block by block in the backward pass; takes less memory and a
        third more time.
      scan_blocks: run the equal blocks of a stage under `nn.scan`, so that compile time does not
        grow with depth.

    Examples:
      >>> import flaxres
      >>> isinstance(flaxres.create_model("densenet121"), Network)
      True
    """

    num_classes: int = 1000
    in_channels: int = 3
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    bn_group: int | None = None
    axis_name: str | None = None
    bn_momentum: float = 0.9
    bn_frozen: bool = False
    dropout: float = 0.0
    head_bias: float = 0.0
    stochastic_depth: float = 0.0
    remat: bool = False
    scan_blocks: bool = False

    def conv(self, **attributes: Any) -> Callable[..., nn.Module]:
        """Returns the convolution module with the network's dtypes bound."""
        return functools.partial(Conv, dtype=self.dtype, param_dtype=self.param_dtype, **attributes)

    def norm(self, kind: str = "batch") -> Callable[..., nn.Module]:
        """Returns the norm module of a kind with the network's dtypes and statistics bound."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if kind in ("group", "evo"):
            return functools.partial(GroupNorm if kind == "group" else EvoNorm, **dtypes)
        return functools.partial(
            BatchNorm,
            group=self.bn_group,
            axis_name=self.axis_name,
            momentum=self.bn_momentum,
            frozen=self.bn_frozen,
            **dtypes,
        )

    def drop_rates(self, depths: tuple[int, ...]) -> list[tuple[float, ...]]:
        """Returns the rate of stochastic depth of each block of each stage."""
        last = max(sum(depths) - 1, 1)
        rates = [self.stochastic_depth * i / last for i in range(sum(depths))]
        return [tuple(rates[sum(depths[:i]) : sum(depths[: i + 1])]) for i in range(len(depths))]

    def strides_and_dilations(
        self, strides: Sequence[int], reached: int, output_stride: int
    ) -> list[tuple[int, tuple[int, int]]]:
        """Returns each stage's stride, and its dilations before and after it strides.

        A stage that would exceed `output_stride` dilates instead of striding.

        Args:
          strides: of the stages.
          reached: stride of the stem.
          output_stride: largest stride of the network.
        """
        result, dilation = [], 1
        for stride in strides:
            previous = dilation
            if stride > 1 and reached >= output_stride:
                stride, dilation = 1, stride * dilation
            reached *= stride
            result.append((stride, (previous, dilation)))
        return result

    def pooled(self, x: Float[Array, "n h w c"]) -> Float[Array, "n c"]:
        """Pools globally by averaging, in float32 or wider."""
        return x.astype(at_least_float32(self.dtype)).mean((1, 2))

    @property
    def for_small_images(self) -> bool:
        """True for networks that are made for images of 32 pixels, as CIFAR's."""
        return getattr(self, "stem", None) == "small"

    @property
    def head_kernel_init(self) -> Initializer:
        """The initialiser of the kernel of the classes."""
        return head_init

    @property
    def head_bias_init(self) -> Initializer:
        return nn.initializers.constant(self.head_bias)

    def head(self, x: Float[Array, "n c"], train: bool, name: str) -> Float[Array, "n k"]:
        """Classifies pooled features: `(N, C)` -> logits `(N, num_classes)`.

        Args:
          x: the pooled features.
          train: use dropout.
          name: of the dense layer; that of `head.fc` is `fc` in a module `head`.
        """
        if not self.num_classes:
            return x
        if self.dropout:
            x = Dropout(self.dropout)(x, train)
        dense = self.classifier(x.dtype)
        outer, _, inner = name.rpartition(".")
        layer = Nested(dense, inner, name=outer) if outer else dense(name=name)
        logits: jax.Array = layer(x)
        return logits

    def classifier(self, dtype: Dtype) -> Callable[..., nn.Module]:
        """Returns the dense layer of the classes with its dtypes and initial values bound."""
        return functools.partial(
            nn.Dense,
            self.num_classes,
            dtype=dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.head_kernel_init,
            bias_init=self.head_bias_init,
        )

    def check(self, images: Shaped[Array, "..."], **choices: tuple[Any, Iterable[Any]]) -> None:
        """Checks attributes against their choices, and the rank, layout and dtype of images.

        Raises:
          InputError: one of them does not fit.
        """
        for field in dataclasses.fields(self):
            value, zero = getattr(self, field.name), ZERO.get(field.name)
            if field.type is int and not isinstance(value, int | np.integer):
                raise InputError(f"{field.name} (={value!r}): the rule is a whole number")
            if field.type is int and value < (1 if zero is None else 0):
                rule = ">= 1" if zero is None else f">= 0; 0 {zero}"
                raise InputError(f"{field.name} (={value}): the rule is {rule}")
            if field.name in STAGES and not _all_positive(value):
                raise InputError(f"{field.name} (={value}): the rule is whole numbers >= 1")
            if field.name in RATES and not 0 <= value <= 1:
                raise InputError(f"{field.name} (={value}): the rule is 0 to 1")
        if self.bn_group is not None and not _all_positive((self.bn_group,)):
            raise InputError(f"bn_group (={self.bn_group}): the rule is a whole number >= 1")
        for attribute, (value, allowed) in choices.items():
            if value not in allowed:
                raise unknown(attribute, value, map(str, allowed))
        if images.ndim != 4:
            raise InputError(
                f"images have shape {images.shape}: the rule is (N, H, W, {self.in_channels}); "
                "add a batch axis with images[None]"
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise InputError(
                f"images are {images.dtype}: the rule is float in the range of the weight's "
                "preprocessing; normalise them first"
            )
        if images.shape[3] != self.in_channels:
            if images.shape[1] == self.in_channels:
                raise InputError(
                    f"images have shape {images.shape}, which looks like NCHW: make them NHWC "
                    "with images.transpose(0, 2, 3, 1)"
                )
            raise InputError(
                f"images have {images.shape[3]} channels, in_channels is {self.in_channels}: "
                f"set in_channels={images.shape[3]}"
            )
        self.check_sides(*images.shape[1:3])

    def extents(self, side: int) -> list[int] | None:
        """Returns the extent of the map of each stage along an axis of `side` pixels.

        None stands for a side that the network can't take: a map would have no pixels, or a branch
        another extent than its shortcut.
        """
        raise NotImplementedError

    @property
    def probe_side(self) -> int:
        """The first side of 64 pixels or more that the network can take, to trace it.

        It is 64 for a class of somebody's own without `extents`.
        """
        try:
            return next(side for side in itertools.count(64) if self.extents(side) is not None)
        except NotImplementedError:
            return 64

    def stage_layers(self) -> list[str]:
        """Returns the name of the layer whose output is `stage1`, of that of `stage2`, and so on.

        Examples:
          >>> import flaxres
          >>> flaxres.ResNet50().stage_layers()
          ['layer1', 'layer2', 'layer3', 'layer4']
        """
        return [f"stages.{i}" for i, _ in enumerate(getattr(self, "depths", ()))]

    def check_sides(self, *sides: int) -> None:
        """Checks that the network can take images of these sides.

        Raises:
          InputError: it can't; the message names the nearest sides that it can take.
        """
        for side in sides:
            if self.extents(side) is not None:
                continue
            below = next((s for s in range(side - 1, 0, -1) if self.extents(s) is not None), None)
            above = next(s for s in itertools.count(side + 1) if self.extents(s) is not None)
            raise InputError(
                f"images of {'x'.join(map(str, sides))} pixels don't fit "
                f"{type(self).__name__}'s strides: resize their side of {side} to "
                f"{above if below is None else f'{below} or {above}'}"
            )

    def check_stages(self, depths: tuple[int, ...], widths: tuple[int, ...]) -> None:
        """Checks that each stage has one depth and one width.

        Raises:
          InputError: `depths` and `widths` differ in length.
        """
        if len(depths) != len(widths):
            raise InputError(
                f"depths (={depths}) and widths (={widths}) must be equally many, "
                "one of each a stage"
            )
