"""Residual blocks (He et al. 2016, sections 3.2 to 3.4): one module, whose branch is a row in a table."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from flaxres.models.layers import zero_pad_shortcut


def basic_branch(width: int, stride: int, v1: bool) -> tuple[tuple[int, int, int], ...]:
    """(features, kernel size, stride) of each convolution of a basic block."""
    del v1  # both versions stride on the first of the two
    return ((width, 3, stride), (width, 3, 1))


def bottleneck_branch(width: int, stride: int, v1: bool) -> tuple[tuple[int, int, int], ...]:
    """(features, kernel size, stride) of each convolution of a bottleneck; v1.5, as PyTorch has it, strides on the 3x3."""
    return ((width, 1, stride if v1 else 1), (width, 3, 1 if v1 else stride), (4 * width, 1, 1))


BRANCHES: dict[str, Callable[..., tuple[tuple[int, int, int], ...]]] = {"basic": basic_branch, "bottleneck": bottleneck_branch}
EXPANSION = {"basic": 1, "bottleneck": 4}


class Projection(nn.Module):
    """Option B of He et al. 2016, section 3.3: a 1x1 convolution and a norm. Named by index, as in PyTorch's `downsample`."""

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = self.conv(self.features, kernel_size=1, stride=self.stride, name="0")(x)
        return self.norm(name="1")(x, use_running_average=not train)


class ResidualBlock(nn.Module):
    """`relu(F(x) + shortcut(x))` (He et al. 2016, eq. 1 and 2), where F is a row of `BRANCHES`.

    The last norm's scale starts at zero, so that the block starts as its shortcut (Goyal et al. 2017, section 5.1).

    Attributes:
      shortcut: 'projection' or 'zero_pad', used only where the shape changes; the identity elsewhere.
      conv, norm: layers with their dtypes bound.

    Call: `(N, H, W, C)` -> `(N, H / stride, W / stride, expansion * width)`.
    """

    kind: str
    width: int
    stride: int
    shortcut: str
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    v1: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        branch = BRANCHES[self.kind](self.width, self.stride, self.v1)
        y = x
        for i, (features, size, stride) in enumerate(branch, 1):
            last = i == len(branch)
            y = self.conv(features, kernel_size=size, stride=stride, name=f"conv{i}")(y)
            init: dict[str, Any] = {"scale_init": nn.initializers.zeros_init()} if last else {}
            y = self.norm(name=f"bn{i}", **init)(y, use_running_average=not train)
            y = y if last else nn.relu(y)
        features = EXPANSION[self.kind] * self.width
        if self.stride != 1 or x.shape[-1] != features:
            if self.shortcut == "zero_pad":
                x = zero_pad_shortcut(x, features, self.stride)
            else:
                x = Projection(features, self.stride, self.conv, self.norm, name="downsample")(x, train)
        return nn.relu(y + x)


class Stage(nn.Module):
    """Blocks of one width, named by index as in PyTorch's `layer1`; the first one has the stride."""

    blocks: int
    stride: int
    block: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(self.blocks):
            x = self.block(stride=self.stride if i == 0 else 1, name=str(i))(x, train)
        return x
