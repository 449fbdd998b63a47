"""Residual blocks (He et al. 2016, sections 3.2 to 3.4; "Identity mappings", 2016, for pre-activation): one place for each formula.

Blocks of a stage are named by index, as in PyTorch's `layer1`. Scanned, the blocks after the first share one trace, and their parameters are
stacked under the name `SCANNED`; `stack_blocks` and `unstack_blocks` go from one form to the other.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxres.models.layers import (
    activated,
    average_pool,
    blur_pool,
    relu,
    shrink_average,
    zero_pad_shortcut,
)

Row = tuple[int, int, int, int, int]  # features, kernel size, stride, groups, dilation
EXPANSION = {"basic": 1, "bottleneck": 4}
SCANNED = "scanned"


def branch(kind: str, width: int, stride: int, v1: bool, cardinality: int, base_width: int, dilation: tuple[int, int]) -> list[Row]:
    """The convolutions of a block. `dilation`: of the strided 3x3, and of a basic block's second one.

    v1.5, as PyTorch has it, strides on a bottleneck's 3x3, v1 on its first 1x1. Xie et al. 2017, table 1: cardinality and base width.
    """
    first, rest = dilation
    if kind == "basic":
        return [(width, 3, stride, 1, first), (width, 3, 1, 1, rest)]
    inner = width * base_width // 64 * cardinality
    return [(inner, 1, stride if v1 else 1, 1, 1), (inner, 3, 1 if v1 else stride, cardinality, first), (4 * width, 1, 1, 1, 1)]


def drop_path(module: nn.Module, x: jax.Array, rate: Any, train: bool) -> jax.Array:
    """Stochastic depth (Huang et al. 2016, eq. 5): an image's whole branch is dropped with probability `rate`, and scaled up where it is kept."""
    if not train:
        return x
    keep = 1 - jnp.asarray(rate, jnp.float32)
    kept = jax.random.bernoulli(module.make_rng("dropout"), keep, (x.shape[0], 1, 1, 1))
    return jnp.where(kept, x / keep.astype(x.dtype), jnp.zeros((), x.dtype))


class Projection(nn.Module):
    """Option B of He et al. 2016, section 3.3: a 1x1 convolution and a norm; or, averaged, ResNet-D's (He et al. 2019, section 4.2), which
    pools instead of skipping pixels. Named by index, as in PyTorch's `downsample`.
    """

    features: int
    stride: int
    dilation: int
    averaged: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        first, stride = 0, self.stride
        if self.averaged:
            first, stride = 1, 1
            if self.stride != 1 or self.dilation != 1:
                x = shrink_average(x, self.stride)
        x = self.conv(self.features, kernel_size=1, stride=stride, name=str(first))(x)
        return self.norm(name=str(first + 1))(x, use_running_average=not train)


class ResidualBlock(nn.Module):
    """`relu(F(x) + shortcut(x))` (He et al. 2016, eq. 1 and 2), where F is the row `branch` gives.

    Where there is a shortcut, the last norm's scale starts at zero, so that the block starts as it (Goyal et al. 2017, section 5.1).

    Attributes:
      shortcut: 'projection', 'average' or 'zero_pad', used only where the shape changes; the identity elsewhere. 'none' leaves all shortcuts out: the
        plain network of section 3.3, `relu(F(x))`.
      attention: a module at the end of the branch, named `se` as in timm.
      anti_alias: 'blur' or 'average' instead of the stride of the 3x3.
      conv, norm: layers with their dtypes bound.
      stochastic: whether the call's `drop_rate` is used.

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
    attention: Callable[..., nn.Module] | None = None
    anti_alias: str | None = None
    stochastic: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, drop_rate: Any = 0.0) -> jax.Array:
        rows = branch(self.kind, self.width, self.stride, self.v1, self.cardinality, self.base_width, self.dilation)
        y = x
        for i, (features, size, stride, groups, dilation) in enumerate(rows, 1):
            last, aliased = i == len(rows), self.anti_alias and stride == 2
            y = self.conv(features, kernel_size=size, stride=1 if aliased else stride, groups=groups, dilation=dilation, name=f"conv{i}")(y)
            init: dict[str, Any] = {"scale_init": nn.initializers.zeros_init()} if last and self.shortcut != "none" else {}
            norm = self.norm(name=f"bn{i}", **init)
            y = norm(y, use_running_average=not train) if last else activated(norm, y, train, rows[i][1])
            if aliased:
                y = blur_pool(y) if self.anti_alias == "blur" else average_pool(y, 2, 2)
        if self.attention is not None:
            y = self.attention(name="se")(y)
        if self.stochastic:
            y = drop_path(self, y, drop_rate, train)
        if self.shortcut == "none":
            return relu(y, rows[0][1])
        features = EXPANSION[self.kind] * self.width
        if self.stride != 1 or x.shape[-1] != features:
            if self.shortcut == "zero_pad":
                x = zero_pad_shortcut(x, features, self.stride)
            else:
                averaged = self.shortcut == "average"
                x = Projection(features, self.stride, self.dilation[1], averaged, self.conv, self.norm, name="downsample")(x, train)
        return relu(y + x, rows[0][1])


class Downsample(nn.Module):
    """The shortcut of a pre-activation stage's first block: no norm of its own. Named as in timm's `downsample.conv`."""

    features: int
    stride: int
    averaged: bool
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.averaged and self.stride != 1:
            x = shrink_average(x, self.stride)
        return self.conv(self.features, kernel_size=1, stride=1 if self.averaged else self.stride, name="conv")(x)


class PreActivationBlock(nn.Module):
    """`F(relu(norm(x))) + shortcut` (He et al. 2016, "Identity mappings in deep residual networks", figure 4e).

    The shortcut is x itself or, where `project`, taken from the normalised and activated x. Named as in timm's resnetv2.

    Call: `(N, H, W, C)` -> `(N, H / stride, W / stride, features)`; the branch of a bottleneck is a quarter as wide.
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
    def __call__(self, x: jax.Array, train: bool, drop_rate: Any = 0.0) -> jax.Array:
        rows = branch(self.kind, self.features // EXPANSION[self.kind], self.stride, False, 1, 64, (1, 1))
        y = activated(self.norm(name="norm1"), x, train, rows[0][1])
        if self.project:
            x = Downsample(self.features, self.stride, self.averaged, self.conv, name="downsample")(y)
        for i, (features, size, stride, groups, dilation) in enumerate(rows, 1):
            if i > 1:
                y = activated(self.norm(name=f"norm{i}"), y, train, size)
            y = self.conv(features, kernel_size=size, stride=stride, groups=groups, dilation=dilation, name=f"conv{i}")(y)
        if self.stochastic:
            y = drop_path(self, y, drop_rate, train)
        return x + y


class Stage(nn.Module):
    """The blocks of one width; the first one, from `first`, changes the shape, the `rest` don't.

    Attributes:
      drop_rates: of stochastic depth, one a block.
      scan: trace the blocks after the first once, under `nn.scan`, so that compile time does not grow with depth.
      remat: recompute a block's activations in the backward pass instead of keeping them.
    """

    first: Callable[..., nn.Module]
    rest: Callable[..., nn.Module]
    drop_rates: tuple[float, ...]
    scan: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = self.call(self.first(name="0"), x, train, self.drop_rates[0])
        if self.scan and len(self.drop_rates) > 2:
            rates = jnp.asarray(self.drop_rates[1:], jnp.float32)
            scanned = nn.scan(
                lambda block, carry, rate: (self.call(block, carry, train, rate), None),
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True, "dropout": True},
                length=len(rates),
            )
            return scanned(self.rest(name=SCANNED), x, rates)[0]
        for i, rate in enumerate(self.drop_rates[1:], 1):
            x = self.call(self.rest(name=str(i)), x, train, rate)
        return x

    def call(self, block: nn.Module, x: jax.Array, train: bool, rate: Any) -> jax.Array:
        if not self.remat:
            return block(x, train, rate)
        return nn.remat(lambda block, x, rate: block(x, train, rate), prevent_cse=not self.scan)(block, x, rate)


def unstack_blocks(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables (or any part of them) with every scanned stage's blocks each under its own index; others are left as they are."""
    result: dict[str, Any] = {}
    for name, value in variables.items():
        if name == SCANNED:
            for i in range(jax.tree.leaves(value)[0].shape[0]):
                result[str(i + 1)] = jax.tree.map(lambda leaf, i=i: leaf[i], value)
        else:
            result[name] = unstack_blocks(value) if isinstance(value, Mapping) else value
    return result


def stack_blocks(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `unstack_blocks`, for stages of more than two blocks: what a network with `scan_blocks=True` takes."""
    result = {name: stack_blocks(value) if isinstance(value, Mapping) else value for name, value in variables.items()}
    blocks = [result[str(i)] for i in range(1, len(result)) if str(i) in result]
    if result.keys() != {str(i) for i in range(len(result))} or len(result) < 3 or any(not isinstance(block, dict) for block in blocks):
        return result
    if len({str(jax.tree.map(jnp.shape, block)) for block in blocks}) > 1:
        return result
    return {"0": result["0"], SCANNED: jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}
