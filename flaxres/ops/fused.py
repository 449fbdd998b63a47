"""Convolutions with all that follows them, as one operation for inference on CPUs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jaxtyping import Array, Float

from flaxres.ops import native
from flaxres.ops.convolution import direct
from flaxres.ops.lowering import define_call

fused_p = Primitive("flaxres_fused_convolution")


def fused_convolution(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "blocks depth numbers"],
    factor: Float[Array, " k2"],
    summand: Float[Array, " k2"],
    shortcut: Float[Array, "n h2 w2 k"] | None,
    *,
    features: int,
    size: int,
    stride: int,
    relu: bool,
) -> Float[Array, "n h2 w2 k"]:
    """Computes `relu(factor * convolution(x) + summand + shortcut)`, rounded once.

    Args:
      x: images `(N, H, W, C)`.
      kernel: the kernel `(S, S, C, K)`, as `packed` returns it.
      factor, summand: of each output channel, as `padded` returns them.
      shortcut: images of the result's shape, or None.
      features: K.
      size: S.
      stride: of the convolution, which pads images by `S // 2` zeros on every side.
      relu: a ReLU follows.
    """
    added = () if shortcut is None else (shortcut,)
    settings = {"features": features, "size": size, "stride": stride, "relu": relu}
    result: jax.Array = fused_p.bind(x, kernel, factor, summand, *added, **settings)
    return result


def pairs(dtype: Any) -> int:
    """Returns the number of input channels of which a lane of the kernel holds the numbers."""
    return 4 // int(np.dtype(dtype).itemsize)


def packed(kernel: Float[np.ndarray, "s s c k"]) -> Float[np.ndarray, "blocks depth numbers"]:
    """Returns a kernel in the order in which native code reads it.

    That is by blocks of output channels, in each by tap and input channel, and for these the
    numbers of the block; in bfloat16 the numbers of two input channels, by turns.

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
) -> jax.Array:
    """Computes `fused_convolution` by JAX's operations."""
    y = direct(x, unpacked(kernel, size, x.shape[3], features), stride).astype(factor.dtype)
    rows = (values[None, None, None, :features] for values in (factor, summand))
    y = y * next(rows) + next(rows)
    y = sum((other.astype(y.dtype) for other in shortcut), y)
    return (jnp.maximum(y, 0) if relu else y).astype(x.dtype)


def call(
    context: mlir.LoweringRuleContext,
    *operands: Any,
    features: int,
    size: int,
    stride: int,
    relu: bool,
) -> Any:
    added = len(operands) == 5
    function = jax.ffi.ffi_lowering(f"flaxres_fused_convolution_{context.avals_out[0].dtype}")
    if not added:  # any operand, which is not read
        context = context.replace(avals_in=[*context.avals_in, context.avals_in[0]])
        operands = (*operands, operands[0])
    return function(
        context,
        *operands,
        size=np.int64(size),
        stride=np.int64(stride),
        added=added,
        relu=relu,
    )


define_call(fused_p, plain, call)
