"""Layers of residual networks: convolution, norms, and the shortcut without parameters.

Images are NHWC. Parameters have Flax's names (`kernel`, `scale`, `bias`, `mean`, `var`). Padding is
explicit and symmetric, as in PyTorch: Flax's 'SAME' pads one side only at stride 2, and weights
trained elsewhere would not fit. How each operation is computed on a platform is in `flaxres.ops`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer
from jax import lax
from jaxtyping import Array, Float

from flaxres.errors import InputError
from flaxres.models.activations import ACTIVATIONS, relu
from flaxres.models.group_norms import EvoNorm
from flaxres.ops import kept
from flaxres.ops.batch_norm import batch_norm, by_image, pays
from flaxres.ops.convolution import convolution
from flaxres.ops.grouped import grouped_convolution
from flaxres.ops.norm import (
    NORMALISED,
    NORMALISED_AND_RECTIFIED,
    Form,
    Pool,
    at_least_float32,
    by_channel,
    max_pooled_first,
    shifted_moments,
    summed_and_rectified,
)

# He et al. 2015, "Delving deep into rectifiers", eq. 14: the backward form, which ResNets use.
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Goyal et al. 2017, section 5.1: the classifier starts near zero.
head_init = nn.initializers.normal(0.01)


class Conv(nn.Module):
    """A square 2-D convolution, padded by `dilation * (kernel_size // 2)` on every side by default.

    `flaxres.ops.convolution` chooses the form for the device.

    Attributes:
      features: output channels.
      kernel_size, stride, groups, dilation: as in PyTorch's `Conv2d`.
      use_bias: add a bias.
      padding: pixels before and after, on both axes, in place of the default.
      standardise: epsilon of weight standardisation (Qiao et al. 2019, eq. 2 and 3); None turns
        it off.
      gamma: multiplies the standardised kernel by this number over the root of its fan in, and by
        a learned `gain` for each output (Brock et al. 2021, "Characterizing signal propagation",
        eq. 1); None does neither.
      dtype: dtype of the computation and the result.
      param_dtype: dtype of the parameters.

    Call: `(N, H, W, C_in)` -> `(N, H', W', features)` in `dtype`.

    Raises:
      InputError: `groups` does not divide the channels in and out.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    use_bias: bool = False
    padding: tuple[int, int] | None = None
    standardise: float | None = None
    gamma: float | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = he_fan_out
    bias_init: Initializer = nn.initializers.zeros_init()
    gain_init: Initializer = nn.initializers.ones_init()

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 k"]:
        size, channels = self.kernel_size, x.shape[-1]
        if channels % self.groups or self.features % self.groups:
            raise InputError(
                f"channels in (={channels}) and out (={self.features}) must be divisible by "
                f"groups (={self.groups})"
            )
        shape = (size, size, channels // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        if self.standardise is not None:
            mean, var = (f((0, 1, 2), keepdims=True) for f in (kernel.mean, kernel.var))
            kernel = (kernel - mean) * lax.rsqrt(var + self.standardise)
        if self.gamma is not None:
            gain = self.param("gain", self.gain_init, shape[-1:], self.param_dtype)
            kernel = kernel * by_channel(gain * (self.gamma * math.prod(shape[:3]) ** -0.5), kernel)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        pad = self.dilation * (size // 2)
        usual = size % 2 and self.stride <= 2 and self.padding in (None, (pad, pad))
        if self.groups > 1:
            padding = self.padding or (pad, pad)
            y = grouped_convolution(x, kernel, self.stride, padding, self.dilation, self.groups)
        elif usual and self.dilation == 1:
            y = convolution(x, kernel, self.stride)
        else:
            y = lax.conv_general_dilated(
                x,
                kernel,
                (self.stride, self.stride),
                [self.padding or (pad, pad)] * 2,
                rhs_dilation=(self.dilation, self.dilation),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
            y = y + by_channel(bias.astype(self.dtype), y)
        return y


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) over a group of images that the caller names.

    The hardware never determines which images share statistics. Statistics are float32 or wider,
    whatever `dtype` is. The running variance is that of all images together and includes the
    variance between the means of the groups, so it does not depend on how the batch is grouped.
    It is biased, as Flax's is.

    Attributes:
      group: number of images that share statistics: rows `[0, group)` form the first group, and
        so on. None takes the whole batch that the module sees, which is the global batch under
        `jit`. Groups that align with the shards of the batch need no communication.
      axis_name: mapped axis (`jax.pmap`, `jax.shard_map`) over which to average statistics;
        excludes `group`.
      frozen: use the running statistics in training too, and do not update them.
      momentum: momentum of the running statistics in Flax's sense (PyTorch's is `1 - momentum`).

    Call: `(N, H, W, C)` -> the same shape in `dtype`. `form` is the operation of
    `flaxres.ops.norm` that applies the statistics, alone or together with what follows the norm.

    Raises:
      InputError: `group` does not divide N, or comes together with `axis_name`; statistics are to
        be updated and `batch_stats` is not mutable; or a channel has one value only.

    Examples:
      >>> norm = BatchNorm(group=2)
      >>> images = jnp.arange(4.0).reshape(4, 1, 1, 1)
      >>> variables = norm.init(jax.random.key(0), images, use_running_average=True)
      >>> y, _ = norm.apply(variables, images, use_running_average=False, mutable=["batch_stats"])
      >>> y.ravel().round().tolist()
      [-1.0, 1.0, -1.0, 1.0]
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
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        use_running_average: bool,
        form: Form = NORMALISED,
    ) -> Float[Array, "n h2 w2 c"]:
        wide = at_least_float32(self.param_dtype)
        shape = (x.shape[-1],)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, wide)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, wide)
        scale = self.param("scale", self.scale_init, shape, self.param_dtype).astype(wide)
        bias_init = nn.initializers.zeros_init()
        bias = self.param("bias", bias_init, shape, self.param_dtype).astype(wide)
        sign = jnp.where(scale < 0, -1, 1)

        def turned(value: jax.Array) -> jax.Array:
            return value * by_channel(sign.astype(value.dtype), value) if form.rising else value

        def normalise(x: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
            multiplier = by_channel(scale, var) * lax.rsqrt(var + self.epsilon)
            rows = (by_channel(values, x) for values in (mean, multiplier, bias))
            return form.apply(self.dtype, x, *rows)

        x, scale = turned(x), turned(scale)
        # After a few steps this is close to the batch's mean: see `shifted_moments`.
        shift = turned(running_mean.value)
        if use_running_average or self.frozen:
            return normalise(x, shift, running_var.value)
        images, group = x.shape[0], self.images_per_group(x)
        grouped = (images // group, group, *x.shape[1:])
        at_once, x = self.at_once(x, form), x.reshape(grouped)
        if at_once:
            rest = () if form.shortcut is None else (form.shortcut.reshape(grouped),)
            relu = form is not NORMALISED
            y, offset, var = batch_norm(self.epsilon, relu, x, shift, scale, bias, *rest)
        else:
            axis = None if self.is_initializing() else self.axis_name
            offset, var = shifted_moments(x, shift, axis)
        if not self.is_initializing():
            if not self.is_mutable_collection("batch_stats"):
                raise InputError(
                    "train=True updates the batch statistics: call model.apply(..., "
                    'train=True, mutable=["batch_stats"]), which returns them too'
                )
            # Stacked, they are one sum over the devices.
            first, second = jnp.stack([offset, var + jnp.square(offset)]).mean(1)
            total = turned(shift + first), jnp.maximum(second - jnp.square(first), 0)
            for running, batch in zip((running_mean, running_var), total, strict=True):
                running.value = self.momentum * running.value + (1 - self.momentum) * batch
        if not at_once:
            mean = by_channel(shift, offset) + offset
            y = normalise(x, by_image(mean), by_image(var))
        return y.reshape(images, *y.shape[2:])

    def at_once(self, x: Float[Array, "n h w c"], form: Form) -> bool:
        """Returns whether `ops.batch_norm` computes statistics and result, in training."""
        if (
            form.rising
            or self.frozen
            or self.axis_name is not None
            or x.dtype != self.dtype
            or self.is_initializing()
        ):
            return False
        group = self.images_per_group(x)
        return pays(len(x) // group, group, self.dtype, at_least_float32(self.param_dtype))

    def images_per_group(self, x: Float[Array, "n h w c"]) -> int:
        """Returns the number of images in a group of statistics."""
        images, height, width = x.shape[:3]
        if self.group is not None and self.axis_name is not None:
            raise InputError(
                f"bn_group (={self.group}) and axis_name (={self.axis_name!r}) exclude each other: "
                "set one of them to None"
            )
        group = images if self.group is None or self.is_initializing() else self.group
        if images % group:
            raise InputError(
                f"bn_group (={self.group}) must divide the {images} images of the batch"
            )
        if self.is_initializing():
            return group
        shards = 1 if self.axis_name is None else lax.psum(1, self.axis_name)
        if group * height * width * shards == 1:
            raise InputError(
                "batch norm has one value for each channel, which it turns into 0: train with "
                "groups of two images or more (bn_group), or with larger images"
            )
        return group


def norm_relu(norm: nn.Module, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w c"]:
    """Computes `relu(norm(x))`, with `BatchNorm` as one operation.

    `EvoNorm` comes without the ReLU.

    Args:
      norm: a `BatchNorm`, `GroupNorm` or `EvoNorm`.
      x: activations `(N, H, W, C)`.
      train: normalise by the statistics of the batch.
    """
    if isinstance(norm, BatchNorm):
        y = norm(x, not train, NORMALISED_AND_RECTIFIED)
        return y if train and norm.at_once(x, NORMALISED_AND_RECTIFIED) else kept.keep(y)
    if isinstance(norm, EvoNorm):
        return kept.keep(norm(x, not train))
    return relu(norm(x, not train))


def norm_sum_relu(
    norm: nn.Module, x: Float[Array, "n h w c"], shortcut: Float[Array, "n h w c"], train: bool
) -> Float[Array, "n h w c"]:
    """Computes `relu(norm(x) + shortcut)`, in training on CPUs as one operation where it pays."""
    if train and isinstance(norm, BatchNorm) and x.dtype == shortcut.dtype:
        form = summed_and_rectified(shortcut)
        if norm.at_once(x, form):
            return norm(x, False, form)
    return relu(norm(x, not train) + shortcut)


def norm_act(
    norm: nn.Module, x: Float[Array, "n h w c"], train: bool, activation: str | None
) -> Float[Array, "n h w c"]:
    """Computes a norm and an activation by name, or no activation; see `norm_relu`."""
    if activation == "relu":
        return norm_relu(norm, x, train)
    y: jax.Array = norm(x, use_running_average=not train)
    return y if activation is None else ACTIVATIONS[activation](y)


class ConvNorm(nn.Module):
    """A convolution, a norm and an activation or None; layers are named `conv` and `bn`."""

    features: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    kernel_size: int = 1
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    activation: str | None = "relu"

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 k"]:
        y = self.conv(
            self.features,
            kernel_size=self.kernel_size,
            stride=self.stride,
            groups=self.groups,
            dilation=self.dilation,
            name="conv",
        )(x)
        return norm_act(self.norm(name="bn"), y, train, self.activation)


def norm_relu_pool(
    norm: nn.Module, x: Float[Array, "n h w c"], train: bool, pool: Pool, features: bool
) -> tuple[Float[Array, "n h w c"] | None, Float[Array, "n h2 w2 c"]]:
    """Computes `relu(norm(x))` and its max pooling.

    Args:
      norm, x, train: as for `norm_relu`.
      pool: a max pooling that pads by -inf or not at all.
      features: whether the caller needs the first result. Without it the pooling runs before a
        `BatchNorm`, which then normalises fewer pixels; see `flaxres.ops.norm.max_pooled_first`.

    Returns:
      `relu(norm(x))`, or None if `features` is False, and its max pooling.
    """
    at_once = train and isinstance(norm, BatchNorm) and norm.at_once(x, NORMALISED_AND_RECTIFIED)
    if features or at_once or not isinstance(norm, BatchNorm):
        y = norm_relu(norm, x, train)
        return y if features else None, pool(y)
    return None, kept.keep(norm(x, not train, max_pooled_first(pool)))


def zero_pad_shortcut(
    x: Float[Array, "n h w c"], features: int, stride: int
) -> Float[Array, "n h2 w2 k"]:
    """Takes every `stride`-th pixel and pads the channels to `features` with zeros.

    This is option A of He et al. 2016, section 4.2. Half of the zeros come before the channels and
    half after them.

    Raises:
      InputError: `features` is less than the channels of `x`.
    """
    x = x[:, ::stride, ::stride]
    if (extra := features - x.shape[-1]) < 0:
        raise InputError(
            f"shortcut='zero_pad' can't narrow {x.shape[-1]} channels to {features}: "
            "widen the block, or take shortcut='projection'"
        )
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))
