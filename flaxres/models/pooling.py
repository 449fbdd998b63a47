"""Average and blur pooling. Max pooling is in `flaxres.ops.pool`."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def mean_of_windows(
    x: Float[Array, "n h w c"], size: int, stride: int, edges: Sequence[tuple[int, int]]
) -> Float[Array, "n h2 w2 c"]:
    """Computes the mean over `size`x`size` windows, with zeros at the edges.

    `nn.avg_pool` divides by an integer, which `jax_numpy_dtype_promotion='strict'` refuses, and
    jax2onnx converts neither it nor `nn.pool` with such edges.
    """
    windows, strides = (1, size, size, 1), (1, stride, stride, 1)
    total: jax.Array = lax.reduce_window(
        x, 0.0, lax.add, windows, strides, ((0, 0), *edges, (0, 0))
    )
    return total / float(size * size)


def average_pool(x: Float[Array, "n h w c"], size: int, stride: int) -> Float[Array, "n h2 w2 k"]:
    """Computes the mean over the `size`x`size` windows that lie inside the image."""
    return mean_of_windows(x, size, stride, ((0, 0), (0, 0)))


def shrink_average(x: Float[Array, "n h w c"], stride: int) -> Float[Array, "n h2 w2 k"]:
    """Computes the mean over 2x2 windows, with timm's rules for the edges.

    At stride 2 a window at an odd edge averages the pixels inside the image. At stride 1 the edge
    is padded by zeros, which count.
    """
    if stride == 1:
        return mean_of_windows(x, 2, 1, ((0, 1), (0, 1)))
    if x.shape[1] % 2 == x.shape[2] % 2 == 0:
        return average_pool(x, 2, 2)
    # Not by windows that reach over the edge: XLA's CPU compiler (jax 0.10.2) sums them wrongly on
    # some maps of a few pixels, such as one of 1x1 in a batch of 16.
    images, height, width, channels = x.shape
    rows, columns = -(-height // 2), -(-width // 2)
    edges = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
    pairs = jnp.pad(x, edges).reshape(images, rows, 2, columns, 2, channels)
    high = np.minimum(height - 2 * np.arange(rows), 2)
    wide = np.minimum(width - 2 * np.arange(columns), 2)
    pixels = jnp.asarray(np.outer(high, wide)[None, ..., None], x.dtype)
    return pairs.sum((2, 4)) / pixels


def anti_alias_pool(
    x: Float[Array, "n h w c"], kind: str, stride: int
) -> Float[Array, "n h2 w2 c"]:
    """Pools in place of a stride.

    Args:
      x: activations `(N, H, W, C)`.
      kind: 'average', the mean over windows of `stride` x `stride`, or 'blur', which convolves with
        a 3x3 binomial kernel, edges reflected, and takes every `stride`-th pixel (Zhang 2019,
        section 3.2).
      stride: 1 or 2. At 1 an average changes nothing; a blur still blurs.
    """
    if kind == "average":
        return average_pool(x, stride, stride)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
    return _three_by_three(padded, (0.25, 0.5, 0.25), stride)


def average_neighbours(x: Float[Array, "n h w c"], stride: int) -> Float[Array, "n h2 w2 c"]:
    """Computes the mean over the 3x3 windows around every `stride`-th pixel.

    Pixels beyond the edge count as zeros, as in PyTorch's `AvgPool2d(3, stride, padding=1)`.
    """
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return _three_by_three(padded, (1 / 3, 1 / 3, 1 / 3), stride)


def _three_by_three(
    x: Float[Array, "n h w c"], weights: tuple[float, float, float], stride: int
) -> Float[Array, "n h2 w2 c"]:
    """Weighs three rows and then three columns; `x` has the pixels beyond the edge."""
    first, second, third = weights
    for axis in (1, 2):
        count = (x.shape[axis] - 3) // stride * stride + 1
        slices = (lax.slice_in_dim(x, start, start + count, stride, axis) for start in range(3))
        left, middle, right = slices
        x = first * left + second * middle + third * right
    return x
