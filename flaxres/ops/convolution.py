"""Convolutions whose form depends on the platform, because XLA's CPU compiler computes some slowly.

On CPUs a 1x1 convolution is a matrix product. So are a 3x3 convolution over at most 2x2 pixels and
the gradient of its image. After `flaxres.use_native_convolutions` convolutions on CPUs call the C++
code in `convolution.cc`. Every other platform gets XLA's convolutions. NVIDIA GPUs compute a
stem of three channels on packed pixels.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir
from jaxtyping import Array, Float

from flaxres.ops import devices, native
from flaxres.ops.bilinear import Form, define
from flaxres.ops.kept import by_platform, jax_only, keep_gradient, varying_alike
from flaxres.ops.product import kernel_of_product, plain_product, product

Extent = tuple[int, int]

convolution_p = Primitive("flaxres_convolution")
kernel_gradient_p = Primitive("flaxres_kernel_gradient")
# Size and most input channels of kernels at stride 2 that `packed` computes.
PACKED_SIZE, PACKED_CHANNELS = 7, 4
# With fewer output channels most lanes of a vector would be empty.
NATIVE_CHANNELS = 12


def convolution(
    x: Float[Array, "n h w c"], kernel: Float[Array, "s s c k"], stride: int
) -> Float[Array, "n h2 w2 k"]:
    """Convolves images with an odd square kernel in the form that suits the platform.

    Args:
      x: images `(N, H, W, C)`.
      kernel: `(S, S, C, K)` with odd S; images are padded by `S // 2` zeros on every side.
      stride: 1 or 2.

    Returns:
      `(N, ceil(H / stride), ceil(W / stride), K)`.
    """
    if jax_only.get():
        return direct(x, kernel, stride)
    size, extent = kernel.shape[0], (-(-x.shape[1] // stride), -(-x.shape[2] // stride))
    if native_pays(kernel) and devices.divisible(len(x)):

        def form(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return convolve(x, kernel, stride, 1, extent, False)

        rows, whole = devices.ROWS, devices.WHOLE
        convolved: jax.Array = devices.on_each(form, (rows, whole), rows)(x, kernel)
        return convolved
    if size == 1:
        cpu, default = (functools.partial(f, stride=stride) for f in (pointwise_product, direct))
        multiplied: jax.Array = by_platform(x, kernel, cpu=cpu, default=default)
        return multiplied
    if size == 3:
        return keep_gradient(
            convolve(x, kernel, stride, 1, extent, False)
            if dense_pays(extent, kernel)
            else direct(x, kernel, stride)
        )
    return direct(x, kernel, stride)


def direct(
    x: Float[Array, "n h w c"], kernel: Float[Array, "s s c k"], stride: int
) -> Float[Array, "n h2 w2 k"]:
    """Convolves as `convolution` does, with XLA's operation; NVIDIA GPUs pack a stem's pixels."""
    if stride == 2 and kernel.shape[0] == PACKED_SIZE and kernel.shape[2] <= PACKED_CHANNELS:
        convolved: jax.Array = by_platform(x, kernel, cuda=packed, default=unpacked)
        return convolved
    return unpacked(x, kernel, stride)


def packed(
    x: Float[Array, "n h w c"], kernel: Float[Array, "s s c k"]
) -> Float[Array, "n h2 w2 k"]:
    """Convolves at stride 2, with each 2x2 pixels as the channels of one (space to depth).

    cuDNN computes a convolution of three channels at a small part of its usual rate. Four channels,
    the last of them zero, make 16 of 2x2 pixels. On an H200 the stem of a ResNet and the gradient
    of its kernel then take 1.1 ms for 256 images instead of 2.9 (benchmarks/DIARY.md).
    """
    size, channels = kernel.shape[0], PACKED_CHANNELS
    taps, low = (size + 1) // 2, (size // 2 + 1) // 2
    height, width = (-(-side // 2) for side in x.shape[1:3])
    more = channels - x.shape[3]
    edges = [(0, 0), (0, 2 * height - x.shape[1]), (0, 2 * width - x.shape[2]), (0, more)]
    x = jnp.pad(x, edges)
    # One axis at a time, as an explicit mesh requires.
    x = x.reshape(-1, height, 2, 2 * width, channels)
    x = x.reshape(-1, height, 2, width, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(-1, height, width, 4, channels).reshape(-1, height, width, 4 * channels)
    # Window 2i - size // 2 of the pixels begins at an odd one: a zero before the kernel's first.
    kernel = jnp.pad(kernel, [(1, 0), (1, 0), (0, more), (0, 0)])
    kernel = kernel.reshape(taps, 2, taps, 2, channels, -1).transpose(0, 2, 1, 3, 4, 5)
    return lax.conv_general_dilated(
        x,
        kernel.reshape(taps, taps, 4 * channels, -1),
        (1, 1),
        [(low, taps - 1 - low)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def unpacked(
    x: Float[Array, "n h w c"], kernel: Float[Array, "s s c k"], stride: int = 2
) -> Float[Array, "n h2 w2 k"]:
    """Convolves as `convolution` does, with one operation of XLA's."""
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(pad, pad), (pad, pad)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def dilated(
    x: jax.Array, kernel: jax.Array, stride: int, input_dilation: int, extent: Extent, turned: bool
) -> jax.Array:
    """Convolves `x` with `input_dilation - 1` zeros between its pixels.

    Zeros after the image give the result the height and width `extent`. With `turned` the kernel is
    turned first: see `turn`.
    """
    kernel = turn(kernel) if turned else kernel
    size, pad = kernel.shape[0], kernel.shape[0] // 2
    padding = [
        (pad, (out - 1) * stride + size - pad - (given - 1) * input_dilation - 1)
        for out, given in zip(extent, x.shape[1:3], strict=True)
    ]
    strides, dilations = (stride, stride), (input_dilation, input_dilation)
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dilations, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def dense(
    x: jax.Array, kernel: jax.Array, stride: int, input_dilation: int, extent: Extent, turned: bool
) -> jax.Array:
    """Computes `dilated` for a 3x3 kernel as one matrix product.

    The matrix has a row for each channel of each input pixel, and a column for each channel of each
    output pixel. Along one axis output pixel o reads input pixel i through the tap
    `input_dilation * i - stride * o + 1` of the kernel, if that is 0, 1 or 2.
    """
    kernel = turn(kernel) if turned else kernel
    taps = [
        input_dilation * np.arange(given) - stride * np.arange(out)[:, None] + 1
        for out, given in zip(extent, x.shape[1:3], strict=True)
    ]
    rows, columns = (np.asarray(tap[..., None] == np.arange(3), x.dtype) for tap in taps)
    return jnp.einsum(
        "nhwc,hwcijk->nijk", x, jnp.einsum("iha,jwb,abck->hwcijk", rows, columns, kernel)
    )


def dense_pays(pixels: Sequence[int], kernel: Any) -> bool:
    """Returns whether `dense` is faster than XLA's convolution on CPUs, by measurement.

    Args:
      pixels: height and width of the image that is convolved. `convolution` gives those of its
        result, which decide for the gradient of its image: there the cotangent is convolved.
      kernel: the kernel.
    """
    # XLA's CPU compiler uses naive loops where the kernel is larger than the image. With few
    # channels these loops cost little.
    return (
        kernel.shape[0] == 3
        and max(pixels) <= 2
        and kernel.shape[2] * kernel.shape[3] >= 128 * 128
        and kernel.dtype.itemsize >= 4
    )


def native_pays(array: Any) -> bool:
    """Returns whether a native call is faster, given its kernel or its result.

    The last axis of both holds the output channels.
    """
    return native.computes(array.dtype) and bool(array.shape[3] >= NATIVE_CHANNELS)


def convolve(
    x: jax.Array, kernel: jax.Array, stride: int, input_dilation: int, extent: Extent, turned: bool
) -> jax.Array:
    """Binds the primitive whose form is `dilated`."""
    settings = {
        "stride": stride,
        "input_dilation": input_dilation,
        "extent": extent,
        "turned": turned,
    }
    result: jax.Array = convolution_p.bind(*varying_alike(x, kernel), **settings)
    return result


def kernel_gradient(x: jax.Array, cotangent: jax.Array, stride: int, size: int) -> jax.Array:
    """Computes the gradient of a convolution's kernel.

    Args:
      x: images `(N, H, W, C)`.
      cotangent: gradient of the result, `(N, H', W', K)`.
      stride: stride of the convolution.
      size: size of its kernel.

    Returns:
      `(size, size, C, K)`.
    """
    result: jax.Array = kernel_gradient_p.bind(
        *varying_alike(x, cotangent), stride=stride, size=size
    )
    return result


def turn(kernel: jax.Array) -> jax.Array:
    """Rotates a kernel by 180 degrees and swaps its channels, for gradients of images."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def image_transpose(
    cotangent: jax.Array,
    x: ad.UndefinedPrimal,
    kernel: jax.Array,
    stride: int,
    input_dilation: int,
    extent: Extent,
    turned: bool,
) -> jax.Array:
    """Computes the gradient of the image: the same form with stride and dilation exchanged."""
    return convolve(cotangent, kernel, input_dilation, stride, x.aval.shape[1:3], not turned)


def kernel_transpose(
    cotangent: jax.Array,
    x: jax.Array,
    kernel: ad.UndefinedPrimal,
    stride: int,
    input_dilation: int,
    extent: Extent,
    turned: bool,
) -> jax.Array:
    """Computes the gradient of the kernel."""
    size = kernel.aval.shape[0]
    if input_dilation == 1:
        gradient = kernel_gradient(x, cotangent, stride, size)
        return turn(gradient) if turned else gradient
    # The form is itself the gradient of an image, with x as the cotangent.
    gradient = kernel_gradient(cotangent, x, input_dilation, size)
    return gradient if turned else turn(gradient)


def usual_kernel_gradient(x: jax.Array, cotangent: jax.Array, stride: int, size: int) -> jax.Array:
    """Computes `kernel_gradient` as JAX's transpose of `dilated`."""
    kernel = jnp.zeros((size, size, x.shape[3], cotangent.shape[3]), x.dtype)
    extent = (cotangent.shape[1], cotangent.shape[2])
    form = lambda kernel: dilated(x, kernel, stride, 1, extent, False)  # noqa: E731
    transpose = jax.linear_transpose(form, varying_alike(kernel, x)[0])
    gradient: jax.Array = transpose(cotangent)[0]
    return gradient


def pointwise(
    x: jax.Array, kernel: jax.Array, stride: int, input_dilation: int, extent: Extent, turned: bool
) -> jax.Array:
    """Computes `dilated` for a 1x1 kernel as a product.

    It serves 1x1 convolutions that native code does not cover, after `use_native_convolutions`.
    Without native code `convolution` calls `pointwise_product`.
    """
    y = plain_product(x[:, ::stride, ::stride], kernel[0, 0].T if turned else kernel[0, 0])
    # Zeros between the pixels, and after the last one.
    edges = [
        (0, out - (given - 1) * input_dilation - 1, input_dilation - 1)
        for out, given in zip(extent, y.shape[1:3], strict=True)
    ]
    return (
        y
        if input_dilation == 1
        else lax.pad(y, jnp.zeros((), y.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    )


def pointwise_kernel_gradient(
    x: jax.Array, cotangent: jax.Array, stride: int, size: int
) -> jax.Array:
    """Computes `kernel_gradient` for a 1x1 kernel as a product."""
    return kernel_of_product(cotangent, x[:, ::stride, ::stride])[None, None]


def on_cpu(x: jax.Array, kernel: jax.Array, **settings: Any) -> jax.Array:
    """Chooses the form of `dilated` on CPUs where no native call is made."""
    form = (
        pointwise
        if kernel.shape[0] == 1
        else dense
        if dense_pays(x.shape[1:3], kernel)
        else dilated
    )
    return form(x, kernel, **settings)


def kernel_gradient_on_cpu(x: jax.Array, cotangent: jax.Array, stride: int, size: int) -> jax.Array:
    return (pointwise_kernel_gradient if size == 1 else usual_kernel_gradient)(
        x, cotangent, stride, size
    )


def native_or(form: Form, call: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a lowering rule: a native call if the program can make one, else `form`."""

    def rule(context: mlir.LoweringRuleContext, *operands: Any, **settings: Any) -> Any:
        if native.callable_in(context) and native_pays(context.avals_out[0]):
            return call(context, *operands, **settings)
        return mlir.lower_fun(functools.partial(form, **settings), multiple_results=False)(
            context, *operands
        )

    return rule


def native_convolution(
    context: mlir.LoweringRuleContext,
    *operands: Any,
    stride: int,
    input_dilation: int,
    extent: Extent,
    turned: bool,
) -> Any:
    call = jax.ffi.ffi_lowering(f"flaxres_convolution_{context.avals_out[0].dtype}")
    return call(
        context,
        *operands,
        stride=np.int64(stride),
        dilation=np.int64(input_dilation),
        turned=turned,
    )


def native_kernel_gradient(
    context: mlir.LoweringRuleContext, *operands: Any, stride: int, size: int
) -> Any:
    call = jax.ffi.ffi_lowering(f"flaxres_kernel_gradient_{context.avals_out[0].dtype}")
    return call(context, *operands, stride=np.int64(stride))


def gradient_of_image(
    change: jax.Array, x: ad.UndefinedPrimal, cotangent: jax.Array, stride: int, size: int
) -> jax.Array:
    return convolve(cotangent, change, 1, stride, x.aval.shape[1:3], True)


def gradient_of_cotangent(
    change: jax.Array, x: jax.Array, cotangent: ad.UndefinedPrimal, stride: int, size: int
) -> jax.Array:
    return convolve(x, change, stride, 1, cotangent.aval.shape[1:3], False)


def pointwise_product(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Computes a 1x1 convolution as a product over the channels of a strided slice.

    For CPUs only: the compilers for accelerators fuse the addition of a shortcut's gradient into a
    convolution, and not into a product.
    """
    return keep_gradient(product(x[:, ::stride, ::stride], kernel[0, 0]))


define(
    convolution_p,
    dilated,
    image_transpose,
    kernel_transpose,
    cpu_form=on_cpu,
    cpu_lowering=native_or(on_cpu, native_convolution),
)
define(
    kernel_gradient_p,
    usual_kernel_gradient,
    gradient_of_image,
    gradient_of_cotangent,
    cpu_form=kernel_gradient_on_cpu,
    cpu_lowering=native_or(kernel_gradient_on_cpu, native_kernel_gradient),
)
