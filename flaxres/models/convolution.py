"""The 3x3 convolution, which over one or two pixels a side is a product on CPU, as is its image's gradient, and the product that is a 1x1 convolution
there.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from flaxres.models.kept import by_platform, keep_gradient, plainly, varying_alike

convolution_p = Primitive("flaxres_convolution_3x3")
product_p = Primitive("flaxres_product")


def convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`(N, H, W, C)`, `(3, 3, C, K)` -> `(N, H', W', K)`, with one pixel of zeros around the images; `stride` is 1 or 2."""
    pixels = [math.ceil(extent / stride) for extent in x.shape[1:3]]
    if plainly.get() or not dense_pays(pixels, kernel):
        return keep_gradient(direct(x, kernel, stride))
    return keep_gradient(convolution_p.bind(x, kernel, stride=stride))


def direct(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (stride, stride), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC"))


def dense(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`direct` as a product of all pixels with a matrix for all pairs of a pixel in and a pixel out."""
    within = [np.arange(extent) - stride * np.arange((extent - 1) // stride + 1)[:, None] + 1 for extent in x.shape[1:3]]
    rows, columns = (np.asarray(place[..., None] == np.arange(3), x.dtype) for place in within)
    return jnp.einsum("nhwc,hwcijk->nijk", x, jnp.einsum("iha,jwb,abck->hwcijk", rows, columns, kernel))


def dense_pays(pixels: Sequence[int], kernel: jax.Array) -> bool:
    """Measured: XLA's CPU compiler has but naive loops where the kernel is larger than what it slides over; few channels don't suffer much."""
    return max(pixels) <= 2 and kernel.shape[2] * kernel.shape[3] >= 128 * 128 and kernel.dtype.itemsize >= 4


def forward(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    usual = functools.partial(direct, stride=stride)
    if not dense_pays(x.shape[1:3], kernel):
        return usual(x, kernel)
    return by_platform(x, kernel, cpu=functools.partial(dense, stride=stride), default=usual)


def image_transpose(cotangent: jax.Array, x: ad.UndefinedPrimal, kernel: jax.Array, stride: int) -> jax.Array:
    def transposed(form: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return lambda cotangent, kernel: jax.linear_transpose(lambda x: form(x, kernel, stride), x.aval)(cotangent)[0]

    return by_platform(cotangent, kernel, cpu=transposed(dense), default=transposed(direct))


def kernel_transpose(cotangent: jax.Array, x: jax.Array, kernel: ad.UndefinedPrimal, stride: int) -> jax.Array:
    return jax.linear_transpose(lambda kernel: direct(x, kernel, stride), kernel.aval)(cotangent)[0]


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
        return lax.dot_general(x, cotangent, (((0,), (0,)), ((), ())))
    return lax.dot_general(lax.optimization_barrier(x.T), cotangent, (((1,), (0,)), ((), ())))


product_p.def_impl(jax.jit(plain_product))
product_p.def_abstract_eval(lambda x, kernel: jax.typeof(jax.eval_shape(plain_product, x, kernel)))
ad.defbilinear(product_p, product_image_transpose, product_kernel_transpose)
batching.primitive_batchers[product_p] = lambda arguments, axes: (jax.vmap(plain_product, in_axes=tuple(axes))(*arguments), 0)
mlir.register_lowering(product_p, mlir.lower_fun(plain_product, multiple_results=False))
