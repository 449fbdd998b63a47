"""Max pooling in four forms: for TPUs, for CPUs, for GPUs, and in native code."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jaxtyping import Array, Float

from flaxres.ops import devices, native
from flaxres.ops.bilinear import define
from flaxres.ops.kept import by_platform, jax_only, varying_alike
from flaxres.ops.lowering import define_call

searched_p = Primitive("flaxres_searched")
chosen_p = Primitive("flaxres_chosen")
spread_p = Primitive("flaxres_spread")
# Places in a window that 8 bits can number.
PLACES = 256


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
    - CPUs with native code search in one pass and keep the place of each maximum.
    - GPUs, where select-and-scatter is not deterministic, use strided slices and keep the place
      of each maximum in 8 bits instead of the outcome of each comparison. In the gradient each
      pixel looks at the windows that it lies in.

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
    cpu = places if native_pays(x, size) else lines
    pooled: jax.Array = by_platform(x, tpu=whole, cpu=cpu, default=places)
    return pooled


def native_pays(x: Any, size: int) -> bool:
    """Returns whether `pool.cc` pools `x`; it keeps places in 8 bits."""
    return size**2 <= PLACES and native.computes(x.dtype) and devices.divisible(x.shape[0])


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
    place = jnp.zeros(best.shape, jnp.uint8 if len(pixels) <= PLACES else jnp.int32)
    for number, value in reversed(list(enumerate(pixels))):
        place = jnp.where(value == best, jnp.asarray(number, place.dtype), place)
    return best, place


def searched(size: int, stride: int, padding: int, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes `best_and_place`, by native code where it is in use."""
    if jax_only.get() or not native_pays(x, size):
        return best_and_place(size, stride, padding, x)
    bind = functools.partial(searched_p.bind, size=size, stride=stride, padding=padding)
    best, place = devices.on_each(bind, (devices.ROWS,), [devices.ROWS, devices.ROWS])(x)
    return best, place


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def maximum_of_places(size: int, stride: int, padding: int, x: jax.Array) -> jax.Array:
    """Pools with a derivative that reads the place of each maximum (GPUs, native code)."""
    return searched(size, stride, padding, x)[0]


@maximum_of_places.defjvp
def maximum_of_places_jvp(
    size: int,
    stride: int,
    padding: int,
    primals: tuple[jax.Array],
    tangents: tuple[jax.Array],
) -> tuple[jax.Array, jax.Array]:
    x, settings = lax.stop_gradient(primals[0]), (size, stride, padding)
    # Without the barrier the backward pass searches the windows again.
    best, place = lax.optimization_barrier(searched(*settings, x))
    return known(*settings, best, primals[0], place), of_windows(*settings, tangents[0], place)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def known(
    size: int, stride: int, padding: int, best: jax.Array, x: jax.Array, place: jax.Array
) -> jax.Array:
    """Returns `best`, the maxima of `x`, with the derivative that they have as such.

    JAX's derivative of the search would be divided between equal maxima.
    """
    return best


@known.defjvp
def known_jvp(
    size: int, stride: int, padding: int, primals: Sequence[jax.Array], tangents: Sequence[Any]
) -> tuple[jax.Array, jax.Array]:
    settings = size, stride, padding
    return known(*settings, *primals), of_windows(*settings, tangents[1], primals[2])


def of_windows(size: int, stride: int, padding: int, x: jax.Array, place: jax.Array) -> jax.Array:
    """Takes from each window of `x` the pixel that `place` names; `spread` is its transpose."""
    settings: Any = {"size": size, "stride": stride, "padding": padding, "extent": x.shape[1:3]}
    if jax_only.get():
        return chosen(x, place, **settings)

    def bound(x: jax.Array, place: jax.Array) -> jax.Array:
        taken: jax.Array = chosen_p.bind(*varying_alike(x, place), **settings)
        return taken

    rows = devices.ROWS
    form = devices.on_each(bound, (rows, rows), rows) if native_pays(x, size) else bound
    taken: jax.Array = form(x, place)
    return taken


def chosen(
    x: jax.Array, place: jax.Array, size: int, stride: int, padding: int, extent: tuple[int, int]
) -> jax.Array:
    """Takes from each window of `x` the pixel that `place` names."""
    first, *others = windows(pad_images(x, padding, 0), size, stride, (1, 2))
    taken = first
    for number, other in enumerate(others, 1):
        taken = jnp.where(place == number, other, taken)
    return taken


def spread(
    y: jax.Array, place: jax.Array, size: int, stride: int, padding: int, extent: tuple[int, int]
) -> jax.Array:
    """Computes the transpose of `chosen`: each value goes to the pixel that `place` names.

    JAX's own transpose adds `size ** 2` padded images. Here each pixel looks at the windows that it
    lies in, `ceil(size / stride) ** 2` at most.

    Args:
      y: values of windows `(N, H', W', C)`.
      place: number of the pixel in the window, `(N, H', W', C)`.
      size, stride, padding: of the windows.
      extent: height and width of the image.

    Returns:
      `(N, H, W, C)`.
    """
    reach = -(-size // stride)
    total = jnp.zeros((), y.dtype)
    for down, across in itertools.product(range(reach), repeat=2):
        value, number = y, place
        places, inside = jnp.zeros((1, 1, 1, 1), jnp.int32), jnp.ones((1, 1, 1, 1), bool)
        for axis, (back, length) in enumerate(zip((down, across), extent, strict=True), 1):
            value = windows_over(value, back, stride, padding, length, axis)
            number = windows_over(number, back, stride, padding, length, axis)
            pixel = padding + along(axis, length)
            at, window = pixel % stride + back * stride, pixel // stride - back
            places = places * size + at
            inside = inside & (at < size) & (window >= 0) & (window < y.shape[axis])
        here = jnp.broadcast_to(inside, number.shape) & (number == places.astype(number.dtype))
        total = total + jnp.where(here, value, jnp.zeros((), y.dtype))
    return total


def along(axis: int, length: int) -> jax.Array:
    """Returns 0, 1, ... along one of four axes, of which the others have length 1."""
    shape = [1, 1, 1, 1]
    shape[axis] = length
    return lax.broadcasted_iota(jnp.int32, shape, axis)


def windows_over(
    y: jax.Array, back: int, stride: int, padding: int, length: int, axis: int
) -> jax.Array:
    """Returns for each pixel along an axis the value of a window that may cover it.

    Window `(padding + pixel) // stride - back` begins last of those that do for `back=0`. Where
    there is none, the value is any.
    """
    last = (padding + length - 1) // stride
    edges = [(0, 0)] * y.ndim
    edges[axis] = (back, max(last + 1 - back - y.shape[axis], 0))
    y = lax.slice_in_dim(jnp.pad(y, edges), 0, last + 1, axis=axis)
    y = jnp.repeat(y, stride, axis)
    return lax.slice_in_dim(y, padding, padding + length, axis=axis)


def attributes(size: int, stride: int, padding: int) -> dict[str, np.int64]:
    """Returns the settings of windows as the handlers of `pool.cc` take them."""
    return {
        "size": np.int64(size),
        "stride": np.int64(stride),
        "padding": np.int64(padding),
    }


def native_search(
    context: mlir.LoweringRuleContext, x: Any, size: int, stride: int, padding: int
) -> Any:
    call = jax.ffi.ffi_lowering(f"flaxres_pool_{context.avals_out[0].dtype}")
    return call(context, x, **attributes(size, stride, padding))


def native_spread(
    context: mlir.LoweringRuleContext,
    y: Any,
    place: Any,
    size: int,
    stride: int,
    padding: int,
    extent: tuple[int, int],
) -> Any:
    if native.callable_in(context) and native_pays(context.avals_out[0], size):
        call = jax.ffi.ffi_lowering(f"flaxres_spread_{context.avals_out[0].dtype}")
        return call(context, y, place, **attributes(size, stride, padding))
    form = functools.partial(spread, size=size, stride=stride, padding=padding, extent=extent)
    return mlir.lower_fun(form, multiple_results=False)(context, y, place)


searched_p.multiple_results = True
define_call(
    searched_p,
    lambda x, size, stride, padding: best_and_place(size, stride, padding, x),
    native_search,
)
# Linear in the first operand; the second one holds integers.
define(chosen_p, chosen, lambda y, x, place, **settings: spread_p.bind(y, place, **settings), None)
define(
    spread_p,
    spread,
    lambda x, y, place, **settings: chosen_p.bind(x, place, **settings),
    None,
    cpu_lowering=native_spread,
)
