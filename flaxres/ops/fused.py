"""Convolutions with all that follows them, as one operation for inference on CPUs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jaxtyping import Array, Float, Shaped

from flaxres.ops import native
from flaxres.ops.convolution import direct
from flaxres.ops.lowering import define_call

fused_p = Primitive("flaxres_fused_convolution")


def fused_convolution(
    x: Shaped[Array, "n h w c"],
    kernel: Shaped[Array, "blocks depth numbers"],
    factor: Float[Array, " k2"],
    summand: Float[Array, " k2"],
    shortcut: Shaped[Array, "n h2 w2 k"] | None = None,
    *,
    features: int,
    size: int,
    stride: int,
    relu: bool,
    dtype: Any = None,
    shortcut_factor: float = 1.0,
) -> Shaped[Array, "n h2 w2 k"]:
    """Computes `relu(factor * convolution(x) + summand + shortcut)`, rounded once.

    Args:
      x: images `(N, H, W, C)`: float32, bfloat16 or uint8.
      kernel: the kernel `(S, S, C, K)`, as `packed` returns it, in the dtype of `x`; int8 for
        images in uint8.
      factor, summand: of each output channel, as `padded` returns them.
      shortcut: images of the result's shape, or None; in the dtype of `x`, or float32.
      features: K.
      size: S.
      stride: of the convolution, which pads images by `S // 2` zeros on every side.
      relu: a ReLU follows.
      dtype: of the result: that of `x`, or for images in uint8 float32. Results in uint8 are
        rounded to whole numbers from 0 to 255.
      shortcut_factor: multiplies the shortcut.
    """
    added = () if shortcut is None else (shortcut,)
    result: jax.Array = fused_p.bind(
        x,
        kernel,
        factor,
        summand,
        *added,
        features=features,
        size=size,
        stride=stride,
        relu=relu,
        dtype=jnp.dtype(x.dtype if dtype is None else dtype),
        shortcut_factor=float(shortcut_factor),
    )
    return result


def pairs(dtype: Any) -> int:
    """Returns the number of input channels of which a lane of the kernel holds the numbers."""
    return 4 // int(np.dtype(dtype).itemsize)


def packed(kernel: Shaped[np.ndarray, "s s c k"]) -> Shaped[np.ndarray, "blocks depth numbers"]:
    """Returns a kernel in the order in which native code reads it.

    That is by blocks of output channels, in each by tap and input channel, and for these the
    numbers of the block; in bfloat16 those of two input channels by turns, in int8 of four.

    Raises:
      InputError: there is no native code.
    """
    *taps, channels, features = kernel.shape
    block, pair = native.block(features), pairs(kernel.dtype)
    words, blocks = -(-channels // pair), -(-features // block)
    margins = (0, words * pair - channels), (0, blocks * block - features)
    whole = np.pad(kernel, ((0, 0), (0, 0), *margins))
    apart = whole.reshape(*taps, words, pair, blocks, block).transpose(4, 0, 1, 2, 5, 3)
    return np.ascontiguousarray(apart.reshape(blocks, -1, block * pair))


def unpacked(kernel: jax.Array, size: int, channels: int, features: int) -> jax.Array:
    """Inverts `packed`."""
    blocks, _, numbers = kernel.shape
    pair = pairs(kernel.dtype)
    apart = kernel.reshape(blocks, size, size, -1, numbers // pair, pair)
    whole = apart.transpose(1, 2, 3, 5, 0, 4).reshape(size, size, -1, blocks * numbers // pair)
    return whole[:, :, :channels, :features]


def padded(values: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k2"]:
    """Returns values of output channels for whole blocks, in float32."""
    block = native.block(len(values))
    return np.pad(values, (0, -len(values) % block)).astype(np.float32)


def plain(
    x: jax.Array,
    kernel: jax.Array,
    factor: jax.Array,
    summand: jax.Array,
    *shortcut: jax.Array,
    features: int,
    size: int,
    stride: int,
    relu: bool,
    dtype: Any,
    shortcut_factor: float,
) -> jax.Array:
    """Computes `fused_convolution` by JAX's operations."""
    kernel = unpacked(kernel, size, x.shape[3], features)
    if x.dtype == jnp.uint8:
        x, kernel = x.astype(jnp.int32), kernel.astype(jnp.int32)
    y = direct(x, kernel, stride).astype(factor.dtype)
    rows = (values[None, None, None, :features] for values in (factor, summand))
    y = y * next(rows) + next(rows)
    y = sum((other.astype(y.dtype) * shortcut_factor for other in shortcut), y)
    y = jnp.maximum(y, 0) if relu else y
    return (jnp.clip(jnp.round(y), 0, 255) if dtype == jnp.uint8 else y).astype(dtype)


def call(
    context: mlir.LoweringRuleContext,
    *operands: Any,
    features: int,
    size: int,
    stride: int,
    relu: bool,
    dtype: Any,
    shortcut_factor: float,
) -> Any:
    avals: list[Any] = list(context.avals_in)
    added = len(operands) == 5
    if not added:  # any operand, which is not read
        avals, operands = [*avals, avals[0]], (*operands, operands[0])
    kind = str(dtype)
    if avals[0].dtype == jnp.uint8:
        kind = f"uint8_{dtype}_{avals[4].dtype}"
    function = jax.ffi.ffi_lowering(f"flaxres_fused_convolution_{kind}")
    return function(
        context.replace(avals_in=avals),
        *operands,
        size=np.int64(size),
        stride=np.int64(stride),
        added=added,
        shortcut_factor=np.float32(shortcut_factor),
        relu=relu,
    )


define_call(fused_p, plain, call, "inference")
