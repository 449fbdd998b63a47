"""The layers of residual networks: convolution, batch norm with named statistics groups, pooling, shortcuts.

Images are NHWC. Parameter names are Flax's (`kernel`, `scale`, `bias`, `mean`, `var`). Padding is explicit and symmetric as in
PyTorch: Flax's 'SAME' pads only one side at stride 2, so weights trained elsewhere would not fit.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer
from jax import lax

from flaxres.errors import InputError
from flaxres.models import kept
from flaxres.models.convolution import convolution
from flaxres.models.kept import by_platform, keep

Pool = Callable[[jax.Array], jax.Array]

# He et al. 2015, "Delving deep into rectifiers", eq. 14: the backward form, which ResNets use.
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Goyal et al. 2017, section 5.1: the classifier starts near zero.
head_init = nn.initializers.normal(0.01)


def relu(x: jax.Array, before: int = 3) -> jax.Array:
    """`max(x, 0)`; `before`: kernel size of the convolution that reads it."""
    return keep(kept.relu(x), before)


class Conv(nn.Module):
    """A square 2-D convolution without bias by default, padded by `dilation * (kernel_size // 2)` on every side.

    How it is computed depends on the device: see `flaxres.models.convolution`.

    `standardise` is the epsilon of weight standardisation (Qiao et al. 2019, eq. 2 and 3), None for plain weights.

    Call: `(N, H, W, C_in)` -> `(N, H', W', features)` in `dtype`.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    use_bias: bool = False
    standardise: float | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = he_fan_out
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size, channels = self.kernel_size, x.shape[-1]
        if channels % self.groups or self.features % self.groups:
            raise InputError(f"channels in (={channels}) and out (={self.features}) must be divisible by groups (={self.groups})")
        kernel = self.param("kernel", self.kernel_init, (size, size, channels // self.groups, self.features), self.param_dtype)
        if self.standardise is not None:
            mean, var = kernel.mean((0, 1, 2)), kernel.var((0, 1, 2))
            kernel = (kernel - mean) * lax.rsqrt(var + self.standardise)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if size % 2 and self.stride <= 2 and self.dilation == self.groups == 1:
            y = convolution(x, kernel, self.stride)
        else:
            pad = self.dilation * (size // 2)
            y = lax.conv_general_dilated(
                x,
                kernel,
                (self.stride, self.stride),
                [(pad, pad), (pad, pad)],
                rhs_dilation=(self.dilation, self.dilation),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=self.groups,
            )
        if self.use_bias:
            y = y + self.param("bias", self.bias_init, (self.features,), self.param_dtype).astype(self.dtype)
        return y


def normalised(dtype: Dtype, x: jax.Array, mean: jax.Array, multiplier: jax.Array, bias: jax.Array) -> jax.Array:
    return ((x.astype(multiplier.dtype) - mean) * multiplier + bias).astype(dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def normalised_and_rectified(dtype: Dtype, x: jax.Array, mean: jax.Array, multiplier: jax.Array, bias: jax.Array) -> jax.Array:
    """`relu(normalised(...))`, whose gradient has two sums over the pixels: JAX's own has a third for the mean's, a multiple of the bias's.

    The derivative's part of x and that of the rest are gated one by one: see `kept.gate`.
    """
    return kept.relu(normalised(dtype, x, mean, multiplier, bias))


@normalised_and_rectified.defjvp
def normalised_and_rectified_jvp(dtype: Dtype, primals: Sequence[jax.Array], tangents: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    x, mean, multiplier, _ = primals
    x_dot, mean_dot, multiplier_dot, bias_dot = tangents
    z, y = normalised(dtype, *primals), normalised_and_rectified(dtype, *primals)
    wide = multiplier.dtype
    of_x = (x_dot.astype(wide) * multiplier).astype(dtype)
    of_rest = ((x.astype(wide) - mean) * multiplier_dot + (bias_dot - mean_dot * multiplier)).astype(dtype)
    return y, jnp.where(z > 0, of_x, jnp.zeros((), dtype)) + kept.gate(of_rest, z, y, apart=True)


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) whose statistics group is named, not given by the hardware.

    Attributes:
      group: images that share statistics; None is the whole batch that the module sees, which under `jit` is the global batch.
        Rows `[0, group)` form the first group, and so on. Groups that align with the shards of the batch need no communication.
      frozen: use the running statistics in training as well, and leave them as they are.
      axis_name: a mapped axis (`jax.pmap`, `jax.shard_map`) over which statistics are averaged; excludes `group`.
      momentum: of the running statistics, Flax's sense (PyTorch's is `1 - momentum`).

    Statistics are float32 or wider whatever `dtype` is. The running variance is that of all images together, the variance between
    the groups' means included, so that it doesn't depend on how the batch was grouped; it is biased, as Flax's is.

    Call: `(N, H, W, C)` -> the same shape in `dtype`; `rectified`, with a ReLU behind. With `pool`, a max pooling that pads by -inf or not at all,
    what that makes of it: the same values, normalised after the pooling, since a norm is monotone in each channel. Then only the statistics need all
    pixels. Raises InputError when `group` does not divide N.
    """

    group: int | None = None
    axis_name: str | None = None
    frozen: bool = False
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    scale_init: Initializer = nn.initializers.ones_init()

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool, pool: Pool | None = None, rectified: bool = False) -> jax.Array:
        channels = x.shape[-1]
        wide = jnp.promote_types(jnp.float32, self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), wide)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), wide)
        scale = self.param("scale", self.scale_init, (channels,), self.param_dtype).astype(wide)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), self.param_dtype).astype(wide)
        sign = jnp.where(scale < 0, -1, 1)

        def turned(value: jax.Array) -> jax.Array:
            """Channels of negative scale negated, where a maximum would else be the minimum of what comes in."""
            return value if pool is None else value * sign.astype(value.dtype)

        x, scale = turned(x), turned(scale)
        if use_running_average or self.frozen:
            return self.normalise(x if pool is None else pool(x), turned(running_mean.value), running_var.value, scale, bias, rectified)
        if self.group is not None and self.axis_name is not None:
            raise InputError(f"bn_group (={self.group}) and axis_name (={self.axis_name!r}) exclude each other: set one of them to None")

        images = x.shape[0]
        group = images if self.group is None or self.is_initializing() else self.group
        if images % group:
            raise InputError(f"bn_group (={self.group}) must divide the {images} images of the batch")
        mean, var = self.statistics(x.reshape(images // group, group, *x.shape[1:]), wide)
        if not self.is_initializing():
            first, second = mean.mean(0), (var + jnp.square(mean)).mean(0)
            total = turned(first), jnp.maximum(second - jnp.square(first), 0)
            for running, batch in zip((running_mean, running_var), total, strict=True):
                running.value = self.momentum * running.value + (1 - self.momentum) * batch
        x = x if pool is None else pool(x)
        grouped, spread = x.reshape(images // group, group, *x.shape[1:]), (slice(None), None, None, None)
        return self.normalise(grouped, mean[spread], var[spread], scale, bias, rectified).reshape(x.shape)

    def statistics(self, grouped: jax.Array, wide: Dtype) -> tuple[jax.Array, jax.Array]:
        """Mean and biased variance of each group, `(groups, C)`; one reading of the activation serves both."""
        values = grouped.astype(wide)
        mean, square = values.mean((1, 2, 3)), jnp.square(values).mean((1, 2, 3))
        if self.axis_name is not None:
            mean, square = lax.pmean((mean, square), self.axis_name)
        return mean, jnp.maximum(square - jnp.square(mean), 0)

    def normalise(self, x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array, rectified: bool) -> jax.Array:
        form = normalised_and_rectified if rectified else normalised
        return form(self.dtype, x, mean, scale * lax.rsqrt(var + self.epsilon), bias)


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) over 32 groups of channels, called as BatchNorm is, pooled after it. Needs no statistics of the batch."""

    groups: int = 32
    epsilon: float = 1e-5
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    scale_init: Initializer = nn.initializers.ones_init()

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool, pool: Pool | None = None, rectified: bool = False) -> jax.Array:
        del use_running_average
        channels = x.shape[-1]
        if channels % self.groups:
            raise InputError(f"channels (={channels}) must be divisible by the {self.groups} groups of the norm")
        wide = jnp.promote_types(jnp.float32, self.param_dtype)
        scale = self.param("scale", self.scale_init, (channels,), self.param_dtype).astype(wide)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), self.param_dtype).astype(wide)
        grouped = x.reshape(*x.shape[:-1], self.groups, channels // self.groups).astype(wide)
        mean, var = grouped.mean((1, 2, 4), keepdims=True), grouped.var((1, 2, 4), keepdims=True)
        normal = ((grouped - mean) * lax.rsqrt(var + self.epsilon)).reshape(x.shape)
        y = (normal * scale + bias).astype(self.dtype)
        y = kept.relu(y) if rectified else y
        return y if pool is None else pool(y)


class SqueezeExcite(nn.Module):
    """Squeeze and excitation (Hu et al. 2018, section 3), with timm's rounding: `ratio` of the channels, a multiple of 8 and at least 8."""

    conv: Callable[..., nn.Module]
    ratio: float = 1 / 16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        squeezed = max(8, int(channels * self.ratio + 4) // 8 * 8)
        y = x.mean((1, 2), keepdims=True)
        y = nn.relu(self.conv(squeezed, kernel_size=1, use_bias=True, name="fc1")(y))
        return x * nn.sigmoid(self.conv(channels, kernel_size=1, use_bias=True, name="fc2")(y))


class EfficientChannelAttention(nn.Module):
    """Efficient channel attention (Wang et al. 2020, section 3.2): a 1-D convolution over the pooled channels."""

    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = int(abs(math.log2(x.shape[-1]) + 1) / 2)
        size = max(size if size % 2 else size + 1, 3)
        y = x.mean((1, 2))[..., None]
        y = nn.Conv(1, (size,), padding=size // 2, use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype, name="conv")(y)
        return x * nn.sigmoid(y[:, None, None, :, 0])


def activated(norm: nn.Module, x: jax.Array, train: bool, before: int = 3, pool: Pool | None = None) -> jax.Array:
    """`relu(norm(x))`, and with a max pooling `pool` what that makes of it; `before`: kernel size of the convolution that reads it."""
    return keep(norm(x, use_running_average=not train, pool=pool, rectified=True), before)


def activated_and_pooled(norm: nn.Module, x: jax.Array, train: bool, pool: Pool, whole: bool) -> tuple[jax.Array | None, jax.Array]:
    """`relu(norm(x))`, and the max pooling of that. Without `whole` the first is None, and the pooling comes before the norm."""
    if not whole:
        return None, activated(norm, x, train, pool=pool)
    y = activated(norm, x, train)
    return y, pool(y)


def average_pool(x: jax.Array, size: int, stride: int) -> jax.Array:
    """Mean over `size`x`size` windows that lie inside the image."""
    return nn.avg_pool(x, (size, size), (stride, stride))


def shrink_average(x: jax.Array, stride: int) -> jax.Array:
    """Mean over 2x2 windows. At stride 2 a window at an odd edge averages what is inside; at stride 1 zeros are taken in, as timm does."""
    if stride == 1:
        return nn.avg_pool(x, (2, 2), (1, 1), ((0, 1), (0, 1)))
    edge = [(0, extent % 2) for extent in x.shape[1:3]]
    return nn.avg_pool(x, (2, 2), (stride, stride), edge, count_include_pad=False)


def blur_pool(x: jax.Array) -> jax.Array:
    """Every second pixel after a 3x3 binomial blur with reflected edges (Zhang 2019, section 3.2): `(N, H, W, C)` -> `(N, H / 2, W / 2, C)`."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
    for axis in (1, 2):
        count = (padded.shape[axis] - 3) // 2 * 2 + 1
        left, middle, right = (lax.slice_in_dim(padded, first, first + count, 2, axis) for first in range(3))
        padded = 0.25 * left + 0.5 * middle + 0.25 * right
    return padded


def max_pool(x: jax.Array, size: int = 3, stride: int = 2, padding: int = 1, fill: float = -math.inf) -> jax.Array:
    """Maximum over `size`x`size` windows, padded by `fill`: `(N, H, W, C)` -> `(N, H', W', C)`.

    Written with strided slices. Its gradient goes to the first maximum of a window, as PyTorch's does, is deterministic on GPUs (XLA's
    select-and-scatter is not), and is four times faster on CPU. There two searches, within rows and then over them, take less time than one of the
    window, and a NaN counts only where a search starts. GPUs keep the place that was found, in 8 bits, and not what each comparison said. TPUs, where
    select-and-scatter is deterministic and goes to the first maximum too, take `lax.reduce_window`: slices there move a quarter more bytes in
    ResNet-50's whole step.
    """
    if fill != -math.inf:  # windows have no other
        x, padding = pad_images(x, padding, fill), 0
    whole, lines, places = (functools.partial(form, size, stride, padding) for form in (maximum_of_windows, maximum_of_lines, maximum_of_places))
    return by_platform(x, tpu=whole, cpu=lines, default=places)


def maximum_of_windows(size: int, stride: int, padding: int, x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (size, size), (stride, stride), [(padding, padding)] * 2)


def windows(x: jax.Array, size: int, stride: int, axes: Sequence[int]) -> list[jax.Array]:
    """For each place in the windows over `axes`, in row-major order, the pixels that are there: strided slices."""
    ends = {axis: (x.shape[axis] - size) // stride * stride + 1 for axis in axes}
    found = []
    for starts in itertools.product(range(size), repeat=len(axes)):
        index = [slice(None)] * x.ndim
        for axis, start in zip(axes, starts, strict=True):
            index[axis] = slice(start, start + ends[axis], stride)
        found.append(x[tuple(index)])
    return found


def pad_images(x: jax.Array, padding: int, fill: float) -> jax.Array:
    return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=fill)


def maximum_of_lines(size: int, stride: int, padding: int, x: jax.Array) -> jax.Array:
    """Columns before rows, so that of equal pixels the first in row-major order is found."""
    best = pad_images(x, padding, -math.inf)
    for axis in (2, 1):
        best = functools.reduce(lambda best, other: jnp.where(other > best, other, best), windows(best, size, stride, (axis,)))
    return best


def best_and_place(size: int, stride: int, padding: int, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The maximum of each window, and the number of the first place in the window that has it."""
    found = windows(pad_images(x, padding, -math.inf), size, stride, (1, 2))
    best = functools.reduce(jnp.maximum, found)
    place = jnp.zeros(best.shape, jnp.uint8 if len(found) <= 256 else jnp.int32)
    for number, value in reversed(list(enumerate(found))):
        place = jnp.where(value == best, jnp.asarray(number, place.dtype), place)
    return best, place


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def maximum_of_places(size: int, stride: int, padding: int, x: jax.Array) -> jax.Array:
    return best_and_place(size, stride, padding, x)[0]


@maximum_of_places.defjvp
def maximum_of_places_jvp(size: int, stride: int, padding: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    best, place = lax.optimization_barrier(best_and_place(size, stride, padding, *primals))  # else the backward pass searches again
    tangent, *others = windows(pad_images(*tangents, padding, 0), size, stride, (1, 2))
    for number, other in enumerate(others, 1):
        tangent = jnp.where(place == number, other, tangent)
    return best, tangent


def zero_pad_shortcut(x: jax.Array, features: int, stride: int) -> jax.Array:
    """Option A of He et al. 2016, section 4.2: every `stride`-th pixel, then zero channels, half before and half behind."""
    x = x[:, ::stride, ::stride]
    if (extra := features - x.shape[-1]) < 0:
        raise InputError(f"shortcut='zero_pad' can't narrow {x.shape[-1]} channels to {features}: widen the block, or take shortcut='projection'")
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))
