"""The 3x3 convolution, whose kernel's gradient is made of products of matrices on CPU, and the product that is a 1x1 convolution there.

XLA's CPU compiler leaves the gradient of a kernel to one core; products use all. At stride 2 there is one product for each of the kernel's nine
places. At stride 1 Lavin & Gray 2016 ("Fast algorithms for convolutional neural networks", section 4.1) need fewer multiplications: images are
split into overlapping tiles of 4x4 pixels, and the correlation of each with the 2x2 pixels of the output that it covers, 36 multiplications for
the 3x3 results, becomes 16 between transformed tiles; over all tiles those are 16 products. Images of one or two pixels a side are products
altogether. Accelerators keep their own.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from flaxres.models.kept import by_platform, keep, plainly, varying_alike

# Lavin & Gray 2016, section 4.1, F(2x2, 3x3): of the image's tile, of the kernel (here of its gradient), of the output (here of its gradient).
IMAGE = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
KERNEL = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
OUTPUT = ((1, 0), (1, 1), (1, -1), (0, -1))
OVER_ROWS = (((0,), (0,)), ((), ()))

convolution_p = Primitive("flaxres_convolution_3x3")
product_p = Primitive("flaxres_product")


def convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`(N, H, W, C)`, `(3, 3, C, K)` -> `(N, H', W', K)`, with one pixel of zeros around the images; `stride` is 1 or 2."""
    if plainly.get():
        return direct(x, kernel, stride)
    return keep(convolution_p.bind(*varying_alike(x, kernel), stride=stride))


def direct(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (stride, stride), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC"))


def dense(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`direct` as a product of all pixels with a matrix for all pairs of a pixel in and a pixel out."""
    within = [np.arange(extent) - stride * np.arange((extent - 1) // stride + 1)[:, None] + 1 for extent in x.shape[1:3]]
    rows, columns = (np.asarray(place[..., None] == np.arange(3), x.dtype) for place in within)
    return jnp.einsum("nhwc,hwcijk->nijk", x, jnp.einsum("iha,jwb,abck->hwcijk", rows, columns, kernel))


def dense_pays(pixels: jax.Array, kernel: jax.Array) -> bool:
    """Measured: XLA's CPU compiler has but naive loops where the kernel is larger than what it slides over; few channels don't suffer much."""
    return max(pixels.shape[1:3]) <= 2 and kernel.shape[2] * kernel.shape[3] >= 128 * 128 and pixels.dtype.itemsize >= 4


def forward(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    usual = functools.partial(direct, stride=stride)
    return by_platform(x, kernel, cpu=functools.partial(dense, stride=stride), default=usual) if dense_pays(x, kernel) else usual(x, kernel)


def combined(weights: Sequence[int], arrays: Sequence[jax.Array]) -> jax.Array:
    """The sum of `arrays` with weights of 1, -1 and 0, without a multiplication."""
    positive = [array for weight, array in zip(weights, arrays, strict=True) if weight > 0]
    negative = [array for weight, array in zip(weights, arrays, strict=True) if weight < 0]
    total = sum(positive[1:], positive[0]) if positive else -negative.pop()
    return total - sum(negative[1:], negative[0]) if negative else total


def transformed(matrix: Sequence[Sequence[int]], tiles: Sequence[Sequence[jax.Array]]) -> list[jax.Array]:
    """`matrix @ tile @ matrix.T` of all tiles, by place in the tile: `(N, H / 2, W / 2, C)` each -> 16 of `(tiles, C)`."""
    columns = [[combined(row, [line[j] for line in tiles]) for j in range(len(tiles[0]))] for row in matrix]
    return [combined(row, line).reshape(-1, tiles[0][0].shape[-1]) for line in columns for row in matrix]


def every_second(x: jax.Array, places: int, rows: int, columns: int) -> list[list[jax.Array]]:
    """For each of `places` x `places` offsets, `rows` x `columns` pixels two apart, `(N, rows, columns, C)`."""
    return [[x[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2] for j in range(places)] for i in range(places)]


def winograd_gradient(x: jax.Array, cotangent: jax.Array) -> jax.Array:
    """Of `sum(cotangent * convolution(x, kernel, 1))`: `(N, H, W, C)`, `(N, H, W, K)` -> `(3, 3, C, K)`."""
    odd = [extent % 2 for extent in x.shape[1:3]]
    rows, columns = ((extent + more) // 2 for extent, more in zip(x.shape[1:3], odd, strict=True))
    x = jnp.pad(x, ((0, 0), *((1, 1 + more) for more in odd), (0, 0)))
    if any(odd):
        cotangent = jnp.pad(cotangent, ((0, 0), *((0, more) for more in odd), (0, 0)))
    images = transformed(IMAGE, every_second(x, 4, rows, columns))
    outputs = transformed(OUTPUT, every_second(cotangent, 2, rows, columns))
    products = jnp.stack([lax.dot_general(image, output, OVER_ROWS) for image, output in zip(images, outputs, strict=True)])
    back = np.asarray(KERNEL, x.dtype)
    return jnp.einsum("ai,bj,abck->ijck", back, back, products.reshape(4, 4, *products.shape[1:]))


def strided_gradient(x: jax.Array, cotangent: jax.Array) -> jax.Array:
    """Of `sum(cotangent * convolution(x, kernel, 2))`: `(N, H, W, C)`, `(N, H', W', K)` -> `(3, 3, C, K)`."""
    rows, columns, features = cotangent.shape[1:]
    channels = x.shape[-1]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    cotangent = cotangent.reshape(-1, features)
    places = [place for line in every_second(x, 3, rows, columns) for place in line]
    return jnp.stack([lax.dot_general(place.reshape(-1, channels), cotangent, OVER_ROWS) for place in places]).reshape(3, 3, channels, features)


def products_pay(x: jax.Array, cotangent: jax.Array) -> bool:
    """Measured: with fewer channels a product costs more than it saves. Half-precision tiles would lose bits."""
    narrow, wide = sorted((x.shape[-1], cotangent.shape[-1]))
    return narrow >= 16 and wide >= 32 and x.dtype.itemsize >= 4


def image_transpose(cotangent: jax.Array, x: ad.UndefinedPrimal, kernel: jax.Array, stride: int) -> jax.Array:
    def transposed(form: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return lambda cotangent, kernel: jax.linear_transpose(lambda x: form(x, kernel, stride), x.aval)(cotangent)[0]

    if not dense_pays(cotangent, kernel):
        return transposed(direct)(cotangent, kernel)
    return by_platform(cotangent, kernel, cpu=transposed(dense), default=transposed(direct))


def kernel_transpose(cotangent: jax.Array, x: jax.Array, kernel: ad.UndefinedPrimal, stride: int) -> jax.Array:
    def usual(x: jax.Array, cotangent: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda kernel: direct(x, kernel, stride), kernel.aval)(cotangent)[0]

    if not products_pay(x, cotangent):
        return usual(x, cotangent)
    return by_platform(x, cotangent, cpu=winograd_gradient if stride == 1 else strided_gradient, default=usual)


def batched(arguments: Sequence[jax.Array], axes: Sequence[int | None], stride: int) -> tuple[jax.Array, int]:
    return jax.vmap(lambda x, kernel: direct(x, kernel, stride), in_axes=tuple(axes))(*arguments), 0


def shape(x: ShapedArray, kernel: ShapedArray, stride: int) -> ShapedArray:
    return jax.typeof(jax.eval_shape(lambda x, kernel: direct(x, kernel, stride), x, kernel))


convolution_p.def_impl(jax.jit(forward, static_argnames="stride"))
convolution_p.def_abstract_eval(shape)
ad.defbilinear(convolution_p, image_transpose, kernel_transpose)
batching.primitive_batchers[convolution_p] = batched
mlir.register_lowering(convolution_p, mlir.lower_fun(forward, multiple_results=False))


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`(N, H, W, C)`, `(C, K)` -> `(N, H, W, K)`: a 1x1 convolution, with a gradient of the kernel that turns x around.

    JAX's own would turn the cotangent and the result around, as XLA's CPU compiler takes it literally; a training step of ResNet-50 takes 1.07 times
    as long with it (two cores, batch 16). Of fewer than 128 channels the product turns what it likes.
    """
    result: jax.Array = plain_product(x, kernel) if plainly.get() else product_p.bind(*varying_alike(x, kernel))
    return result


def plain_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.dot_general(x, kernel, (((3,), (0,)), ((), ())))


def product_image_transpose(cotangent: jax.Array, x: ad.UndefinedPrimal, kernel: jax.Array) -> jax.Array:
    return lax.dot_general(cotangent, kernel, (((3,), (1,)), ((), ())))


def product_kernel_transpose(cotangent: jax.Array, x: jax.Array, kernel: ad.UndefinedPrimal) -> jax.Array:
    x, cotangent = x.reshape(-1, x.shape[-1]), cotangent.reshape(-1, cotangent.shape[-1])
    if x.shape[1] < 128:
        return lax.dot_general(x, cotangent, OVER_ROWS)
    return lax.dot_general(lax.optimization_barrier(x.T), cotangent, (((1,), (0,)), ((), ())))


product_p.def_impl(jax.jit(plain_product))
product_p.def_abstract_eval(lambda x, kernel: jax.typeof(jax.eval_shape(plain_product, x, kernel)))
ad.defbilinear(product_p, product_image_transpose, product_kernel_transpose)
batching.primitive_batchers[product_p] = lambda arguments, axes: (jax.vmap(plain_product, in_axes=tuple(axes))(*arguments), 0)
mlir.register_lowering(product_p, mlir.lower_fun(plain_product, multiple_results=False))
