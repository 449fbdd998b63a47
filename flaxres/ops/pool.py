"""Max pooling in three forms: for TPUs, for CPUs, and for GPUs."""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from flaxres.ops.kept import by_platform


def max_pool(
    x: Float[Array, "n h w c"],
    size: int = 3,
    stride: int = 2,
    padding: int = 1,
    fill: float = -math.inf,
) -> Float[Array, "n h2 w2 c"]:
    """Computes the maximum over `size`x`size` windows: `(N, H, W, C)` -> `(N, H', W', C)`.

    The gradient goes to the first maximum of each window in row-major order, as in PyTorch. It is
    deterministic on every platform:

    - TPUs use `lax.reduce_window`. Its gradient, select-and-scatter, is deterministic there and
      also picks the first maximum. Strided slices would move a quarter more bytes in a whole
      training step of ResNet-50.
    - CPUs search within rows and then over the rows, by strided slices. The gradient is four
      times as fast as select-and-scatter, and two short searches take less time than one over
      the whole window. A NaN propagates only from the pixel at which a search starts.
    - GPUs, where select-and-scatter is not deterministic, use strided slices and keep the place
      of each maximum in 8 bits instead of the outcome of each comparison.

    Args:
      x: images.
      size: height and width of a window.
      stride: pixels between windows.
      padding: pixels added on every side.
      fill: padding value.

    Examples:
      >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), size=2, padding=0)[0, ..., 0]
      Array([[ 5.,  7.],
             [13., 15.]], dtype=float32)
    """
    if fill != -math.inf:  # the forms below pad by -inf only
        x, padding = pad_images(x, padding, fill), 0
    forms = (maximum_of_windows, maximum_of_lines, maximum_of_places)
    whole, lines, places = (functools.partial(form, size, stride, padding) for form in forms)
    pooled: jax.Array = by_platform(x, tpu=whole, cpu=lines, default=places)
    return pooled


def maximum_of_windows(size: int, stride: int, padding: int, x: jax.Array) -> jax.Array:
    """Pools with XLA's own window operation (TPUs)."""
    edge = (padding, padding)
    pooled: jax.Array = nn.max_pool(x, (size, size), (stride, stride), [edge, edge])
    return pooled


def pad_images(x: jax.Array, padding: int, fill: float) -> jax.Array:
    """Pads height and width of `(N, H, W, C)` by `fill`."""
    edge = (padding, padding)
    return jnp.pad(x, ((0, 0), edge, edge, (0, 0)), constant_values=fill)


def windows(x: jax.Array, size: int, stride: int, axes: Sequence[int]) -> list[jax.Array]:
    """Returns a strided slice of `x` for each place in the windows over `axes`, row-major."""
    ends = {axis: (x.shape[axis] - size) // stride * stride + 1 for axis in axes}
    slices = []
    for starts in itertools.product(range(size), repeat=len(axes)):
        index = [slice(None)] * x.ndim
        for axis, start in zip(axes, starts, strict=True):
            index[axis] = slice(start, start + ends[axis], stride)
        slices.append(x[tuple(index)])
    return slices


def larger(best: jax.Array, other: jax.Array) -> jax.Array:
    """Returns the elementwise maximum; its gradient goes to `best` where both are equal."""
    return jnp.where(other > best, other, best)


def maximum_of_lines(size: int, stride: int, padding: int, x: jax.Array) -> jax.Array:
    """Pools along the width and then along the height (CPUs).

    This order finds the first of several equal pixels in row-major order.
    """
    best = pad_images(x, padding, -math.inf)
    for axis in (2, 1):
        best = functools.reduce(larger, windows(best, size, stride, (axis,)))
    return best


def best_and_place(
    size: int, stride: int, padding: int, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns each window's maximum and the number of the first place in the window that has it."""
    pixels = windows(pad_images(x, padding, -math.inf), size, stride, (1, 2))
    best = functools.reduce(jnp.maximum, pixels)
    place = jnp.zeros(best.shape, jnp.uint8 if len(pixels) <= 256 else jnp.int32)
    for number, value in reversed(list(enumerate(pixels))):
        place = jnp.where(value == best, jnp.asarray(number, place.dtype), place)
    return best, place


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def maximum_of_places(size: int, stride: int, padding: int, x: jax.Array) -> jax.Array:
    """Pools with a derivative that reads the place of each maximum (GPUs)."""
    return best_and_place(size, stride, padding, x)[0]


@maximum_of_places.defjvp
def maximum_of_places_jvp(
    size: int,
    stride: int,
    padding: int,
    primals: tuple[jax.Array],
    tangents: tuple[jax.Array],
) -> tuple[jax.Array, jax.Array]:
    # Without the barrier the backward pass searches the windows again.
    best, place = lax.optimization_barrier(best_and_place(size, stride, padding, *primals))
    tangent, *others = windows(pad_images(*tangents, padding, 0), size, stride, (1, 2))
    for number, other in enumerate(others, 1):
        tangent = jnp.where(place == number, other, tangent)
    return best, tangent
