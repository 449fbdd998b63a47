"""A 1x1 convolution that holds the norms around it in Pallas kernels, against XLA's operations.

    python -m benchmarks.pallas_kernels [--images N]          times both on this machine's GPU
    python -m benchmarks.pallas_kernels --topology h200:1     counts their bytes, without a GPU
    python -m benchmarks.pallas_kernels --smoke               compares their results on a CPU

The convolution is the last one of ResNet-50's bottleneck blocks, in training, in bfloat16, at each
of the four sizes. XLA's convolutions on GPUs are kernels of cuDNN, which hold no other operation
of a norm: normalisation, ReLU and the sums of a norm are passes over memory of their own. The
kernels here are

  forward          reads the convolution before as it was written, normalises it and applies ReLU
                   in the prologue, and sums its result and the squares by channel in the epilogue
  image_gradient   gates its result by that ReLU, and sums it and its products with the input of the
                   norm in the epilogue
  kernel_gradient  normalises in the prologue what `forward` has not written

Figures are named `PIXELS_OPERATION_FORM`; they are milliseconds, or megabytes an image. JAX calls
Pallas' Triton backend deprecated since 0.11; the kernels are a measurement, and no part of flaxres.
"""

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import command
from flaxres.diagnostics.compiled import traffic
from flaxres.diagnostics.topology import ENVIRONMENT, absent_devices

# Pixels of a side, channels of the input and of the result, in the four stages.
SIZES = [(56, 64, 256), (28, 128, 512), (14, 256, 1024), (7, 512, 2048)]
SMOKE = (8, 64, 128)
# Pixels, channels and terms of a sum that one step of a kernel takes.
ROWS, COLUMNS, DEPTH = 128, 128, 64
# Kernels' gradients are summed in parts, so that there are this many programs.
PROGRAMS = 264
CALLS, ROUNDS = 20, 5

Arrays = dict[str, Any]


def shapes(images: int, size: int, channels: int, results: int) -> Arrays:
    """Returns the arguments of the operations: names to shapes and dtypes."""
    pixels, half = (images, size, size), jnp.bfloat16
    return {
        "before": jax.ShapeDtypeStruct((*pixels, channels), half),  # what the norm takes
        "normalised": jax.ShapeDtypeStruct((*pixels, channels), half),  # behind the ReLU
        "scale": jax.ShapeDtypeStruct((channels,), jnp.float32),
        "shift": jax.ShapeDtypeStruct((channels,), jnp.float32),
        "kernel": jax.ShapeDtypeStruct((channels, results), half),
        "gradient": jax.ShapeDtypeStruct((*pixels, results), half),
    }


def values(images: int, size: int, channels: int, results: int) -> Arrays:
    """Returns random arguments of the operations."""
    described = shapes(images, size, channels, results)
    keys = jax.random.split(jax.random.key(0), len(described))
    made = {
        name: jax.random.normal(key, array.shape, array.dtype)
        for key, (name, array) in zip(keys, described.items(), strict=True)
    }
    made["normalised"] = normalise(made["before"], made["scale"], made["shift"])
    return made


def normalise(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """Returns the ReLU of the normalised input, in its dtype."""
    return jnp.maximum(x.astype(jnp.float32) * scale + shift, 0).astype(x.dtype)


def sums(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the sums of x and of the products of both over all but the last dimension."""
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    axes = tuple(range(x.ndim - 1))
    return x.sum(axes), (x * y).sum(axes)


def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns the 1x1 convolution of (n, h, w, channels) with a kernel (channels, results)."""
    form = ("NHWC", "HWIO", "NHWC")
    result: jax.Array = lax.conv_general_dilated(
        x, kernel[None, None], (1, 1), "VALID", dimension_numbers=form
    )
    return result


def xla_forward(a: Arrays) -> tuple[jax.Array, jax.Array]:
    """Returns the convolution behind norm and ReLU, with its sums, by XLA."""
    result = convolution(normalise(a["before"], a["scale"], a["shift"]), a["kernel"])
    return result, jnp.stack(sums(result, result))


def xla_image_gradient(a: Arrays) -> tuple[jax.Array, jax.Array]:
    """Returns the gradient of the norm's result, with the sums that the norm's needs, by XLA."""
    x = a["before"]
    _, transposed = jax.vjp(lambda h: convolution(h, a["kernel"]), a["normalised"])
    (gradient,) = transposed(a["gradient"])
    gated = jnp.where(a["normalised"] > 0, gradient, 0)
    return gradient, jnp.stack(sums(gated, x))


def xla_kernel_gradient(a: Arrays) -> jax.Array:
    """Returns the gradient of the kernel by XLA, from the normalised input that `forward` wrote."""
    _, transposed = jax.vjp(lambda kernel: convolution(a["normalised"], kernel), a["kernel"])
    (gradient,) = transposed(a["gradient"])
    return jnp.asarray(gradient)


def fused_forward(a: Arrays) -> tuple[jax.Array, jax.Array]:
    """Returns what `xla_forward` does, by one kernel and a sum over its programs."""
    x, kernel = flat(a["before"]), a["kernel"]
    (count, channels), results = x.shape, kernel.shape[1]

    def body(
        x_ref: Any, kernel_ref: Any, scale_ref: Any, shift_ref: Any, y_ref: Any, sums_ref: Any
    ) -> None:
        def add(i: jax.Array, total: jax.Array) -> jax.Array:
            part = pl.ds(i * DEPTH, DEPTH)
            h = normalise(x_ref[:, part], scale_ref[part], shift_ref[part])
            return total + jnp.dot(h, kernel_ref[part, :], preferred_element_type=jnp.float32)

        zeros = jnp.zeros((ROWS, COLUMNS), jnp.float32)
        y = lax.fori_loop(0, channels // DEPTH, add, zeros).astype(y_ref.dtype)
        y_ref[...] = y
        sums_ref[0, 0, :], sums_ref[0, 1, :] = sums(y, y)

    vector = pl.BlockSpec((channels,), lambda i, j: (0,))
    y, partial = call(
        body,
        (count // ROWS, results // COLUMNS),
        [
            pl.BlockSpec((ROWS, channels), lambda i, j: (i, 0)),
            pl.BlockSpec((channels, COLUMNS), lambda i, j: (0, j)),
            *(vector, vector),
        ],
        *tile_and_sums(count, results, x.dtype, COLUMNS),
    )(x, kernel, a["scale"], a["shift"])
    return y.reshape(*a["before"].shape[:3], results), partial.sum(0)


def fused_image_gradient(a: Arrays) -> tuple[jax.Array, jax.Array]:
    """Returns what `xla_image_gradient` does, its gradient gated by the ReLU already."""
    x, kernel, gradient = flat(a["before"]), a["kernel"], flat(a["gradient"])
    (count, channels), results = x.shape, kernel.shape[1]
    columns = min(channels, COLUMNS)

    def body(
        gradient_ref: Any,
        kernel_ref: Any,
        x_ref: Any,
        scale_ref: Any,
        shift_ref: Any,
        out_ref: Any,
        sums_ref: Any,
    ) -> None:
        def add(i: jax.Array, total: jax.Array) -> jax.Array:
            part = pl.ds(i * DEPTH, DEPTH)
            dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
            return total + dot(gradient_ref[:, part], kernel_ref[:, part].T)

        zeros = jnp.zeros((ROWS, columns), jnp.float32)
        total = lax.fori_loop(0, results // DEPTH, add, zeros)
        x = x_ref[...]
        gated = jnp.where(normalise(x, scale_ref[...], shift_ref[...]) > 0, total, 0)
        gated = gated.astype(out_ref.dtype)
        out_ref[...] = gated
        sums_ref[0, 0, :], sums_ref[0, 1, :] = sums(gated, x)

    vector = pl.BlockSpec((columns,), lambda i, j: (j,))
    gated, partial = call(
        body,
        (count // ROWS, channels // columns),
        [
            pl.BlockSpec((ROWS, results), lambda i, j: (i, 0)),
            pl.BlockSpec((columns, results), lambda i, j: (j, 0)),
            pl.BlockSpec((ROWS, columns), lambda i, j: (i, j)),
            *(vector, vector),
        ],
        *tile_and_sums(count, channels, x.dtype, columns),
    )(gradient, kernel, x, a["scale"], a["shift"])
    return gated.reshape(a["before"].shape), partial.sum(0)


def fused_kernel_gradient(a: Arrays) -> jax.Array:
    """Returns what `xla_kernel_gradient` does, from the input of the norm."""
    x, gradient = flat(a["before"]), flat(a["gradient"])
    (count, channels), results = x.shape, gradient.shape[1]
    rows = min(channels, COLUMNS)
    tiles = (channels // rows) * (results // COLUMNS)
    steps = count // DEPTH
    parts = max(n for n in range(1, max(2, PROGRAMS // tiles + 1)) if not steps % n)

    def body(x_ref: Any, gradient_ref: Any, scale_ref: Any, shift_ref: Any, out_ref: Any) -> None:
        def add(i: jax.Array, total: jax.Array) -> jax.Array:
            part = pl.ds(i * DEPTH, DEPTH)
            h = normalise(x_ref[part, :], scale_ref[...], shift_ref[...])
            dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
            return total + dot(h.T, gradient_ref[part, :])

        zeros = jnp.zeros((rows, COLUMNS), jnp.float32)
        out_ref[0, :, :] = lax.fori_loop(0, steps // parts, add, zeros)

    vector = pl.BlockSpec((rows,), lambda i, j, k: (i,))
    summed = call(
        body,
        (channels // rows, results // COLUMNS, parts),
        [
            pl.BlockSpec((count // parts, rows), lambda i, j, k: (k, i)),
            pl.BlockSpec((count // parts, COLUMNS), lambda i, j, k: (k, j)),
            *(vector, vector),
        ],
        pl.BlockSpec((1, rows, COLUMNS), lambda i, j, k: (k, i, j)),
        jax.ShapeDtypeStruct((parts, channels, results), jnp.float32),
    )(x, gradient, a["scale"], a["shift"])
    total: jax.Array = summed.sum(0)
    return total.astype(a["kernel"].dtype)


def flat(x: jax.Array) -> jax.Array:
    """Returns (n, h, w, channels) as (n h w, channels)."""
    return x.reshape(-1, x.shape[-1])


def tile_and_sums(count: int, channels: int, dtype: Any, columns: int) -> tuple[Any, Any]:
    """Returns the blocks and the shapes of a result and of its two sums by each program."""
    return (
        [
            pl.BlockSpec((ROWS, columns), lambda i, j: (i, j)),
            pl.BlockSpec((1, 2, columns), lambda i, j: (i, 0, j)),
        ],
        [
            jax.ShapeDtypeStruct((count, channels), dtype),
            jax.ShapeDtypeStruct((count // ROWS, 2, channels), jnp.float32),
        ],
    )


def call(
    body: Callable[..., None], grid: tuple[int, ...], inputs: Any, outputs: Any, results: Any
) -> Callable[..., Any]:
    """Returns a kernel; without a GPU, or the description of one, it is interpreted."""
    described = jax.sharding.get_abstract_mesh().abstract_device
    return pl.pallas_call(
        body,
        results,
        grid=grid,
        in_specs=inputs,
        out_specs=outputs,
        interpret=described is None and jax.default_backend() != "gpu",
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=3),
    )


FORMS: dict[str, dict[str, Callable[[Arrays], Any]]] = {
    "xla": {
        "forward": xla_forward,
        "image_gradient": xla_image_gradient,
        "kernel_gradient": xla_kernel_gradient,
    },
    "fused": {
        "forward": fused_forward,
        "image_gradient": fused_image_gradient,
        "kernel_gradient": fused_kernel_gradient,
    },
}
OPERATIONS = tuple(FORMS["xla"])


def described(topology: str, images: int) -> dict[str, float]:
    """Returns the megabytes an image of each operation, compiled for a GPU that is not here."""
    mesh = absent_devices(topology)
    sharding = NamedSharding(mesh, PartitionSpec())
    kind = f"NVIDIA {topology.partition(':')[0].upper()}"
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform="gpu")
    abstract = jax.sharding.AbstractMesh(
        mesh.axis_sizes, mesh.axis_names, mesh.axis_types, abstract_device=device
    )
    figures = {}
    with jax.sharding.use_abstract_mesh(abstract):
        for size in SIZES:
            arguments = shapes(images, *size)
            for form, operations in FORMS.items():
                for name, operation in operations.items():
                    traced = jax.jit(operation, in_shardings=sharding, out_shardings=sharding)
                    lowered = traced.trace(arguments).lower(lowering_platforms=("cuda",))
                    moved, _ = traffic(lowered.compile().as_text())
                    figures[f"{size[0]}_{name}_{form}"] = sum(moved.values()) / images / 1e6
    return figures


def timed(images: int) -> dict[str, float]:
    """Returns the milliseconds of each operation, the median of calls of both forms in turn."""
    figures = {}
    for size in SIZES:
        arguments = values(images, *size)
        for name in OPERATIONS:
            operations = {form: jax.jit(FORMS[form][name]) for form in FORMS}
            rounds: dict[str, list[float]] = {form: [] for form in FORMS}
            for i in range(1 + ROUNDS):
                for form, operation in operations.items():
                    start = time.perf_counter()
                    jax.block_until_ready([operation(arguments) for _ in range(CALLS)])
                    if i:  # the first round compiles
                        rounds[form].append(1e3 * (time.perf_counter() - start) / CALLS)
            for form, seconds in rounds.items():
                figures[f"{size[0]}_{name}_{form}"] = statistics.median(seconds)
    return figures


def differences(images: int, size: tuple[int, int, int]) -> dict[str, float]:
    """Returns the largest differences of both forms, relative to the largest value of XLA's."""
    arguments, figures = values(images, *size), {}
    for name in OPERATIONS:
        xla, fused = (jax.jit(FORMS[form][name])(arguments) for form in ("xla", "fused"))
        if name == "image_gradient":  # XLA's gate is in the pass behind
            xla = jnp.where(arguments["normalised"] > 0, xla[0], 0), xla[1]
        pairs = zip(jax.tree.leaves(xla), jax.tree.leaves(fused), strict=True)
        far = [jnp.abs(a - b).max() / jnp.abs(a).max() for a, b in pairs]
        figures[f"{size[0]}_{name}_difference"] = float(max(far))
    return figures


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--topology", help="compile for this GPU, e.g. h200:1")
    parser.add_argument("--smoke", action="store_true", help="compare results at a small size")
    chosen: argparse.Namespace = parser.parse_args()
    if chosen.topology:
        os.environ.update(ENVIRONMENT["cuda"])
        figures = described(chosen.topology, chosen.images)
    elif chosen.smoke:
        figures = differences(4, SMOKE)
    else:
        figures = {}
        for size in SIZES:
            figures |= differences(chosen.images, size)
        figures |= timed(chosen.images)
    command.show(figures, chosen.json)


if __name__ == "__main__":
    main()
