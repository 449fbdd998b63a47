"""Grouped convolutions, computed by each device for its own images.

XLA's partitioner has two faults with them (jax 0.10.2 to 0.12.0.1). It sums the gradient of the
kernel over all devices. Where several devices hold the same images, as on a mesh of two axes of
which one splits the batch, the sum is too large by the number of copies
(`findings/xla_grouped_gradient_two_axes.sh`). It also gathers the whole batch on each device for
the convolution itself, unless every channel is a group.

In programs for several devices the operations here tell the partitioner that each device computes
its images, and that the kernel's gradient is summed over devices that together hold each image
exactly once.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import mlir
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Float

from flaxres.ops.bilinear import Form, define
from flaxres.ops.kept import jax_only, varying_alike

convolution_p = Primitive("flaxres_grouped_convolution")
image_gradient_p = Primitive("flaxres_grouped_image_gradient")
kernel_gradient_p = Primitive("flaxres_grouped_kernel_gradient")

Pad = tuple[int, int]


class Window(NamedTuple):
    """The settings of a convolution.

    Attributes:
      extent: height and width of the images.
      size: height and width of the kernel.
      stride: of both axes.
      padding: pixels before and after, for both axes.
      dilation: distance of the kernel's taps.
      groups: groups of channels.
      vmapped: `jax.vmap` made some of the groups: see `batched`.
    """

    extent: tuple[int, ...]
    size: tuple[int, ...]
    stride: int
    padding: Pad
    dilation: int
    groups: int
    vmapped: bool = False


def grouped_convolution(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "s s c2 k"],
    stride: int,
    padding: Pad,
    dilation: int,
    groups: int,
) -> Float[Array, "n h2 w2 k"]:
    """Convolves each group of channels separately.

    Args:
      x: images `(N, H, W, C)`.
      kernel: `(S, S, C / groups, K)`.
      stride: of both axes.
      padding: zeros before and after each axis.
      dilation: distance of the kernel's taps.
      groups: number of groups.
    """
    window = Window(x.shape[1:3], kernel.shape[:2], stride, padding, dilation, groups)
    return direct(x, kernel, window) if jax_only.get() else convolve(x, kernel, window)


def bound(primitive: Primitive, form: Form, *operands: jax.Array, window: Window) -> jax.Array:
    """Binds a primitive with the program of its partitioned form."""
    shapes = (jax.ShapeDtypeStruct(array.shape, array.dtype) for array in operands)
    program = traced(form, window, jax.sharding.get_abstract_mesh(), *shapes)
    result: jax.Array = primitive.bind(*varying_alike(*operands), window=window, program=program)
    return result


def convolve(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Convolves images."""
    return bound(convolution_p, partitioned_convolution, x, kernel, window=window)


def image_gradient(cotangent: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Computes the gradient of the images from that of the result."""
    return bound(image_gradient_p, partitioned_image_gradient, cotangent, kernel, window=window)


def kernel_gradient(x: jax.Array, cotangent: jax.Array, window: Window) -> jax.Array:
    """Computes the gradient of the kernel from the images and the gradient of the result."""
    return bound(kernel_gradient_p, partitioned_kernel_gradient, x, cotangent, window=window)


def direct(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Convolves by XLA's operation."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (window.stride, window.stride),
        [window.padding] * 2,
        rhs_dilation=(window.dilation, window.dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=window.groups,
    )


def direct_image_gradient(cotangent: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Computes `image_gradient`: a convolution of the cotangent with zeros between its pixels."""
    size, inner, outer, groups = window.size[0], *kernel.shape[2:], window.groups
    apart = kernel[::-1, ::-1].reshape(size, size, inner, groups, outer // groups)
    turned = apart.swapaxes(2, 4).reshape(size, size, outer // groups, inner * groups)
    reach = window.dilation * (size - 1)
    before = reach - window.padding[0]
    padding = [
        (before, pixels + reach - before - (given - 1) * window.stride - 1)
        for pixels, given in zip(window.extent, cotangent.shape[1:3], strict=True)
    ]
    return lax.conv_general_dilated(
        cotangent,
        turned,
        (1, 1),
        padding,
        (window.stride, window.stride),
        (window.dilation, window.dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def direct_kernel_gradient(x: jax.Array, cotangent: jax.Array, window: Window) -> jax.Array:
    """Computes `kernel_gradient` as JAX's transpose of `direct`."""
    shape = (*window.size, x.shape[3] // window.groups, cotangent.shape[3])
    kernel = varying_alike(jnp.zeros(shape, x.dtype), x)[0]
    transpose = jax.linear_transpose(lambda kernel: direct(x, kernel, window), kernel)
    gradient: jax.Array = transpose(cotangent)[0]
    return gradient


def kernel_gradient_by_taps(x: jax.Array, cotangent: jax.Array, window: Window) -> jax.Array:
    """Computes `kernel_gradient` as a product for each tap, which XLA partitions well.

    It is slower than `direct_kernel_gradient`: each product reads the images.
    """
    pad, groups = (window.padding, window.padding), window.groups
    padded = jnp.pad(x, ((0, 0), *pad, (0, 0)))
    after = cotangent.reshape(*cotangent.shape[:3], groups, -1)

    def product(*tap: int) -> jax.Array:
        rows, columns = (
            slice(start := window.dilation * i, start + window.stride * (n - 1) + 1, window.stride)
            for i, n in zip(tap, cotangent.shape[1:3], strict=True)
        )
        seen = padded[:, rows, columns]
        result = jnp.einsum("nhwgi,nhwgo->igo", seen.reshape(*seen.shape[:3], groups, -1), after)
        return result.reshape(len(result), -1)

    height, width = window.size
    products = [product(i, j) for i in range(height) for j in range(width)]
    return jnp.stack(products).reshape(height, width, -1, cotangent.shape[3])


def placed(sharding: Sharding, shape: tuple[int, ...]) -> tuple[list[Any], list[list[int]]]:
    """Returns the devices, and for each slice of the batch the indices of those that hold it.

    There are no slices if the arrays are split along another axis than the batch, if they are not
    split, or if the slices are not of one size.
    """
    # XLA may propose to split a number of rows that the devices don't divide; JAX tells the places
    # only for divisible numbers.
    multiple = tuple(n * len(sharding.device_set) for n in shape)
    indices = sharding.devices_indices_map(multiple)
    places: dict[Any, list[int]] = {}
    for place, index in enumerate(indices.values()):
        (start, _, _), *rest = (part.indices(n) for part, n in zip(index, multiple, strict=True))
        if any(part[:2] != (0, n) for part, n in zip(rest, multiple[1:], strict=True)):
            return list(indices), []
        places.setdefault(start, []).append(place)
    even = len(places) > 1 and shape[0] % len(places) == 0
    return list(indices), list(places.values()) if even else []


def partition(
    form: Form, sums: bool, window: Window, mesh: Mesh, operands: Any, result: Any
) -> tuple[Mesh, Callable[..., jax.Array], Sharding, tuple[Sharding, Sharding]]:
    """Returns the program of a device, and the shardings of its result and operands.

    Args:
      form: the operation.
      sums: it is the gradient of the kernel, which has the images' rows in both operands.
      window: the settings of the convolution.
      mesh: empty, since shardings are not decoded.
      operands, result: shapes, with the shardings that XLA proposes.
    """
    rows = operands[0].sharding
    devices, places = placed(rows, operands[0].shape)
    line = Mesh(np.array(devices), ("devices",))
    whole = NamedSharding(line, PartitionSpec())
    if not places:
        rows = whole

    def program(left: jax.Array, right: jax.Array) -> jax.Array:
        computed = form(left, right, window)
        if sums and places:
            # Each group of devices holds every slice of the batch once.
            groups = [list(group) for group in zip(*places, strict=True)]
            computed = lax.psum(computed, "devices", axis_index_groups=groups)
        return computed

    return line, program, whole if sums else rows, (rows, rows if sums else whole)


def partitioned(form: Form, sums: bool = False) -> Form:
    """Returns a form that XLA partitions by `partition`."""

    def infer(window: Window, mesh: Mesh, operands: Any, result: Any) -> Sharding:
        return partition(form, sums, window, mesh, operands, result)[2]

    rule = "n h w c, n p q k -> a b d e" if sums else "n h w c, a b d e -> n p q k"
    others = (letter for letter in rule if letter.isalpha() and letter != "n")
    made = custom_partitioning(form, static_argnums=(2,))
    made.def_partition(
        partition=functools.partial(partition, form, sums),
        infer_sharding_from_operands=infer,
        decode_shardings=False,
        sharding_rule=rule,
        need_replication_factors=tuple(others),
    )
    return made


partitioned_convolution = partitioned(direct)
partitioned_image_gradient = partitioned(direct_image_gradient)
partitioned_kernel_gradient = partitioned(direct_kernel_gradient, sums=True)


@functools.cache
def traced(
    form: Form, window: Window, mesh: AbstractMesh, *operands: jax.ShapeDtypeStruct
) -> ClosedJaxpr:
    """Returns the program of a partitioned form, traced within the present mesh.

    The primitive carries it as a setting. JAX sees the partitioned operation in it, and tells the
    lowering rules the devices.
    """
    return jax.make_jaxpr(form, static_argnums=2)(*operands, window)


def lowered(unpartitioned: Form) -> Callable[..., Any]:
    """Returns the lowering rule of a primitive, normally its partitioned program.

    Three kinds of program can't contain a custom partitioning, and get `unpartitioned` instead:
    those for several TPUs, those of `jax.export` for several devices, and those within a
    `jax.shard_map` over some axes of a mesh. In programs for several devices, groups that
    `jax.vmap` made get it too: they may be split over the devices, which XLA does well.
    """

    def rule(
        context: mlir.LoweringRuleContext, *operands: Any, window: Window, program: ClosedJaxpr
    ) -> Any:
        module = context.module_context
        axes: Any = module.axis_context
        manual: Any = getattr(axes, "manual_axes", ())
        some_manual = bool(manual) and set(manual) != set(axes.mesh.axis_names)
        several = getattr(axes, "num_devices", 1) != 1
        exported = getattr(module.lowering_parameters, "for_export", False)
        kept = exported or window.vmapped or "tpu" in module.platforms
        if some_manual or (several and kept):
            function = functools.partial(unpartitioned, window=window)
            return mlir.lower_fun(function, multiple_results=False)(context, *operands)
        return mlir.lower_fun(jaxpr_as_fun(program), multiple_results=True)(context, *operands)

    return rule


def fold(array: jax.Array, axes: str, axis: str, groups: int) -> jax.Array:
    """Merges the first axis of an array, which is that of `jax.vmap`, into another.

    Args:
      array: of more axes by one than `axes`, whose last two are one.
      axes: names of the other axes: `nhwgi` of images, `abigo` of kernels, `nhwgo` of results.
      axis: the axis that grows. It is the major one of the two, so that a split of a batch remains
        one. Among groups the axis of `jax.vmap` is the major one, for the same reason.
      groups: size of the axis `g`.
    """
    apart = array.reshape(*array.shape[:-1], groups, -1)
    place = axes.index(axis)
    moved = jnp.moveaxis(apart, 0, place + (axis != "g"))
    shape = moved.shape
    merged = moved.reshape(*shape[:place], shape[place] * shape[place + 1], *shape[place + 2 :])
    return merged.reshape(*merged.shape[:-2], -1)


def unfold(array: jax.Array, axes: str, axis: str, groups: int, size: int) -> jax.Array:
    """Inverts `fold`; `groups` counts those of the folded array, `size` is that of `jax.vmap`."""
    apart = array.reshape(*array.shape[:-1], groups, -1)
    place, shape = axes.index(axis), apart.shape
    first, second = (size, -1) if axis == "g" else (-1, size)
    split = apart.reshape(*shape[:place], first, second, *shape[place + 1 :])
    moved = jnp.moveaxis(split, place + (axis != "g"), 0)
    return moved.reshape(*moved.shape[:-2], -1)


def batched(
    bind: Callable[..., jax.Array], layouts: tuple[str, str, str], axes: tuple[str, str]
) -> Callable[..., tuple[jax.Array, int]]:
    """Returns the rule of a primitive under `jax.vmap`: the same operation over a longer axis.

    Args:
      bind: binds the primitive.
      layouts: axes of the two operands and of the result, as in `fold`.
      axes: the axis that grows where only the first operand is mapped, and where only the second
        is. Where both are, there are more groups.
    """

    def rule(
        operands: Sequence[jax.Array],
        places: Sequence[int | None],
        window: Window,
        program: ClosedJaxpr,
    ) -> tuple[jax.Array, int]:
        both = None not in places
        axis = "g" if both else axes[places[0] is None]
        size = next(x.shape[i] for x, i in zip(operands, places, strict=True) if i is not None)
        folded = [
            x if i is None else fold(jnp.moveaxis(x, i, 0), layout, axis, window.groups)
            for x, i, layout in zip(operands, places, layouts[:2], strict=True)
        ]
        if both:
            window = window._replace(groups=size * window.groups, vmapped=True)
        return unfold(bind(*folded, window), layouts[2], axis, window.groups, size), 0

    return rule


def _defined(
    primitive: Primitive, form: Form, unpartitioned: Form, left: Any, right: Any, vmapped: Any
) -> None:
    """Registers the rules of a primitive; its transposes are the other two."""

    def usual(x: jax.Array, y: jax.Array, window: Window, program: ClosedJaxpr) -> jax.Array:
        return form(x, y, window)

    def transpose(rule: Any) -> Callable[..., jax.Array]:
        return lambda cotangent, x, y, window, program: rule(cotangent, x, y, window)

    define(primitive, usual, transpose(left), transpose(right), batching_rule=vmapped)
    mlir.register_lowering(primitive, lowered(unpartitioned))


_defined(
    convolution_p,
    direct,
    direct,
    lambda cotangent, x, kernel, window: image_gradient(cotangent, kernel, window),
    lambda cotangent, x, kernel, window: kernel_gradient(x, cotangent, window),
    batched(convolve, ("nhwgi", "abigo", "nhwgo"), ("n", "o")),
)
_defined(
    image_gradient_p,
    direct_image_gradient,
    direct_image_gradient,
    lambda tangent, cotangent, kernel, window: convolve(tangent, kernel, window),
    lambda tangent, cotangent, kernel, window: kernel_gradient(tangent, cotangent, window),
    batched(image_gradient, ("nhwgo", "abigo", "nhwgi"), ("n", "i")),
)
_defined(
    kernel_gradient_p,
    direct_kernel_gradient,
    kernel_gradient_by_taps,
    lambda tangent, x, cotangent, window: image_gradient(cotangent, tangent, window),
    lambda tangent, x, cotangent, window: convolve(x, tangent, window),
    batched(kernel_gradient, ("nhwgi", "nhwgo", "abigo"), ("i", "o")),
)
