"""Grouped convolutions, whose kernel gradient is right on every mesh.

XLA's partitioner adds the gradient of a grouped convolution's kernel over all devices of the mesh.
Devices that have the same images, as on a mesh of two axes of which the batch is split along one,
are then counted several times: the gradient is a multiple of the right one (jax 0.10.2 to 0.12.0.1,
`findings/grouped-gradient-on-two-axes.sh`). In programs for several devices each device here
computes the gradient of its images, and the sum goes over the axes that split the batch.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import mlir
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from flaxres.ops.bilinear import define
from flaxres.ops.kept import jax_only, varying_alike

grouped_p = Primitive("flaxres_grouped_convolution")
image_gradient_p = Primitive("flaxres_grouped_image_gradient")
kernel_gradient_p = Primitive("flaxres_grouped_kernel_gradient")

Pad = tuple[int, int]


class Window(NamedTuple):
    """The settings of a convolution.

    Attributes:
      extent: height and width of the images.
      size: height and width of the kernel.
      stride: of both axes.
      padding: pixels before and behind, for both axes.
      dilation: distance of the kernel's taps.
      groups: groups of channels.
    """

    extent: tuple[int, ...]
    size: tuple[int, ...]
    stride: int
    padding: Pad
    dilation: int
    groups: int


def grouped_convolution(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "s s c2 k"],
    stride: int,
    padding: Pad,
    dilation: int,
    groups: int,
) -> Float[Array, "n h2 w2 k"]:
    """Convolves groups of channels apart.

    Args:
      x: images `(N, H, W, C)`.
      kernel: `(S, S, C / groups, K)`.
      stride: of both axes.
      padding: zeros before and behind each axis.
      dilation: distance of the kernel's taps.
      groups: number of groups.
    """
    window = Window(x.shape[1:3], kernel.shape[:2], stride, padding, dilation, groups)
    if jax_only.get():
        return direct(x, kernel, window)
    return bound(grouped_p, x, kernel, window)


def bound(
    primitive: Primitive, left: jax.Array, right: jax.Array, window: Window, **settings: Any
) -> jax.Array:
    """Binds one of the primitives."""
    result: jax.Array = primitive.bind(*varying_alike(left, right), window=window, **settings)
    return result


def kernel_gradient(x: jax.Array, cotangent: jax.Array, window: Window) -> jax.Array:
    """Computes the gradient of the kernel from the images and the gradient of the result."""
    forms = (jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (x, cotangent))
    program = traced(window, jax.sharding.get_abstract_mesh(), *forms)
    return bound(kernel_gradient_p, x, cotangent, window, program=program)


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
    """Computes the gradient of the images: a convolution with stride and dilation exchanged."""
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
    """Computes the gradient of the kernel as JAX's transpose of `direct`."""
    shape = (*window.size, x.shape[3] // window.groups, cotangent.shape[3])
    kernel = varying_alike(jnp.zeros(shape, x.dtype), x)[0]
    transpose = jax.linear_transpose(lambda kernel: direct(x, kernel, window), kernel)
    gradient: jax.Array = transpose(cotangent)[0]
    return gradient


partitioned_kernel_gradient = custom_partitioning(direct_kernel_gradient, static_argnums=(2,))


def partition(window: Window, mesh: Mesh, operands: Any, result: Any) -> Any:
    """Returns the program of a device, and the shardings of its result and operands.

    Images may be split along the batch. Each set of devices that has the whole batch once adds up
    its gradients.
    """
    shape, sharding = operands[0].shape, operands[0].sharding
    places: dict[Any, list[int]] = {}
    indices = sharding.devices_indices_map(shape)
    for place, (rows, *rest) in enumerate(indices.values()):
        if any(part.indices(n)[:2] != (0, n) for part, n in zip(rest, shape[1:], strict=True)):
            places = {}
            break
        places.setdefault(rows.indices(shape[0]), []).append(place)
    line = Mesh(np.array(list(indices)), ("devices",))
    whole = NamedSharding(line, PartitionSpec())

    def program(x: jax.Array, cotangent: jax.Array) -> jax.Array:
        gradient = direct_kernel_gradient(x, cotangent, window)
        if len(places) < 2:
            return gradient
        sets = [list(one) for one in zip(*places.values(), strict=True)]
        total: jax.Array = lax.psum(gradient, "devices", axis_index_groups=sets)
        return total

    return line, program, whole, (sharding, sharding) if places else (whole, whole)


partitioned_kernel_gradient.def_partition(
    partition=partition,
    infer_sharding_from_operands=lambda window, mesh, operands, result: NamedSharding(
        Mesh(np.array(list(operands[0].sharding.device_set)), ("devices",)), PartitionSpec()
    ),
    decode_shardings=False,
    sharding_rule="n h w c, n p q k -> a b d e",
    need_replication_factors=tuple("hwcpqkabde"),
)


@functools.cache
def traced(
    window: Window,
    mesh: AbstractMesh,
    x: jax.ShapeDtypeStruct,
    cotangent: jax.ShapeDtypeStruct,
) -> ClosedJaxpr:
    """Returns the program of `partitioned_kernel_gradient`, traced within the present mesh.

    The primitive carries it as a setting. JAX sees the partitioned operation in it, and tells the
    lowering rules the devices.
    """
    return jax.make_jaxpr(partitioned_kernel_gradient, static_argnums=2)(x, cotangent, window)


def kernel_gradient_by_taps(x: jax.Array, cotangent: jax.Array, window: Window) -> jax.Array:
    """Computes the gradient of the kernel as a product for each tap, which XLA partitions well.

    It is slower than `direct_kernel_gradient`: each product reads the images.
    """
    pad, groups = (window.padding, window.padding), window.groups
    padded = jnp.pad(x, ((0, 0), *pad, (0, 0)))
    after = cotangent.reshape(*cotangent.shape[:3], groups, -1)

    def tap(row: int, column: int) -> jax.Array:
        rows, columns = (
            slice(
                start := window.dilation * tap, start + window.stride * (n - 1) + 1, window.stride
            )
            for tap, n in zip((row, column), cotangent.shape[1:3], strict=True)
        )
        seen = padded[:, rows, columns]
        product = jnp.einsum("nhwgi,nhwgo->igo", seen.reshape(*seen.shape[:3], groups, -1), after)
        return product.reshape(len(product), -1)

    return jnp.stack(
        [jnp.stack([tap(i, j) for j in range(window.size[1])]) for i in range(window.size[0])]
    )


def lower_kernel_gradient(
    context: mlir.LoweringRuleContext, *operands: Any, window: Window, program: Any
) -> Any:
    """Lowers the gradient of the kernel to its program, which is `direct` on a single device.

    `jax.export` can't keep that program, and it can't lie within a `jax.shard_map` over some axes
    of a mesh. These two get `kernel_gradient_by_taps`.
    """
    module = context.module_context
    axes: Any = module.axis_context
    manual: Any = getattr(axes, "manual_axes", ())
    some_manual = bool(manual) and set(manual) != set(axes.mesh.axis_names)
    exported = getattr(module.lowering_parameters, "for_export", False)
    if some_manual or (exported and getattr(axes, "num_devices", 1) != 1):
        taps = functools.partial(kernel_gradient_by_taps, window=window)
        return mlir.lower_fun(taps, multiple_results=False)(context, *operands)
    return mlir.lower_fun(jaxpr_as_fun(program), multiple_results=True)(context, *operands)


define(
    grouped_p,
    direct,
    lambda cotangent, x, kernel, window: bound(image_gradient_p, cotangent, kernel, window),
    lambda cotangent, x, kernel, window: kernel_gradient(x, cotangent, window),
)
define(
    image_gradient_p,
    direct_image_gradient,
    lambda change, cotangent, kernel, window: bound(grouped_p, change, kernel, window),
    lambda change, cotangent, kernel, window: kernel_gradient(change, cotangent, window),
)
define(
    kernel_gradient_p,
    lambda x, cotangent, window, program: direct_kernel_gradient(x, cotangent, window),
    lambda change, x, cotangent, window, program: bound(
        image_gradient_p, cotangent, change, window
    ),
    lambda change, x, cotangent, window, program: bound(grouped_p, x, change, window),
)
mlir.register_lowering(kernel_gradient_p, lower_kernel_gradient)
