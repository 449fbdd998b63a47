"""ReLU, and hints that only one platform's compiler receives.

`keep` and `keep_gradient` return their argument. On CPUs XLA can't optimise them away; on other
platforms they produce no code. XLA's CPU compiler fuses a chain of elementwise operations into
every kernel that reads the end of the chain. It then computes the chain again in each of them,
transposed where the kernel computes a gradient. There is one exception: it does not fuse a binary
elementwise operation into the matrix product or convolution that reads it. The identities are
therefore written as binary operations. With them a training step of ResNet-50 takes 2.2 s instead
of 2.7 s (two cores, batch 16).

`gate` is the derivative of a ReLU: it passes a tangent where the ReLU's input is above 0. On GPUs
it compares the ReLU's result instead, which is in memory for the layers that read it. XLA's GPU
compiler would compute the input again from two arrays. `apart=True` puts the result behind an
optimisation barrier. Without the barrier XLA writes the gated gradient to memory in a pass of its
own. With it, each of the two backward passes of a norm computes the gate. Compiled for an H200, a
training step of ResNet-50 moves 4% less memory with the comparison of the result, and a further 1%
less with the barrier (benchmarks/RESULTS.md). A step compiled for TPUs would move more with it.

`jax_operations_only` leaves all of this out, for converters.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

keep_p = Primitive("flaxres_keep")
gate_p = Primitive("flaxres_gate")
jax_only = contextvars.ContextVar("jax_only", default=False)


@contextlib.contextmanager
def jax_operations_only() -> Iterator[None]:
    """Traces networks with JAX's own operations only, the same for all platforms.

    Converters to other formats know no others.
    """
    token = jax_only.set(True)
    try:
        yield
    finally:
        jax_only.reset(token)


def by_platform(
    *arguments: jax.Array, default: Callable[..., Any], **platforms: Callable[..., Any]
) -> Any:
    """Calls `lax.platform_dependent`, or `default` within `jax_operations_only`."""
    if jax_only.get():
        return default(*arguments)
    return lax.platform_dependent(*arguments, default=default, **platforms)


def varying_alike(*arrays: jax.Array) -> list[jax.Array]:
    """Makes arrays vary over the same axes of `jax.shard_map`, as one primitive requires.

    Each array then varies over every axis that one of them varies over, and the cotangent of a
    parameter is summed over the devices. Outside `jax.shard_map` the arrays are returned unchanged.
    """
    varying = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    axes = frozenset[str]().union(*varying)
    return [
        array if axes == own else lax.pcast(array, tuple(axes - own), to="varying")
        for array, own in zip(arrays, varying, strict=True)
    ]


def keep(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns `x`, and stops XLA's CPU compiler from fusing across it or across its gradient."""
    if jax_only.get():
        return x
    kept: jax.Array = keep_p.bind(x, forward=True)
    return kept


def keep_gradient(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns `x`, and stops XLA's CPU compiler from fusing across its gradient only.

    This suits the result of a convolution, which is in memory anyway: the compiler fuses nothing
    into a convolution.
    """
    if jax_only.get():
        return x
    same: jax.Array = keep_p.bind(x, forward=False)
    return same


def gate(tangent: jax.Array, x: jax.Array, y: jax.Array, apart: bool = False) -> jax.Array:
    """Returns `tangent` where `x` is above 0, and 0 elsewhere.

    On GPUs a NaN in `x` passes the tangent too.

    Args:
      tangent: the value to gate.
      x: input of the ReLU.
      y: result of the ReLU, `relu(x)`.
      apart: on GPUs, read `y` behind an optimisation barrier.
    """
    gated: jax.Array = gate_p.bind(*varying_alike(tangent, x, y), apart=apart)
    return gated


@jax.custom_jvp
def rectified(x: jax.Array) -> jax.Array:
    """Computes `max(x, 0)` with `gate` as its derivative."""
    return jnp.maximum(x, jnp.zeros((), x.dtype))


@rectified.defjvp
def rectified_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    y = rectified(*primals)
    return y, gate(*tangents, *primals, y)


def relu(x: jax.Array) -> jax.Array:
    """Computes `max(x, 0)`; the derivative at 0 is 0."""
    return jax.nn.relu(x) if jax_only.get() else rectified(x)


def by_input(tangent: jax.Array, x: jax.Array, y: jax.Array, apart: bool) -> jax.Array:
    """Gates by the input of the ReLU (all platforms but GPUs)."""
    return jnp.where(x > 0, tangent, jnp.zeros((), tangent.dtype))


def by_result(tangent: jax.Array, x: jax.Array, y: jax.Array, apart: bool) -> jax.Array:
    """Gates by the result of the ReLU (GPUs)."""
    y = lax.optimization_barrier(y) if apart else y
    # Not `y > 0`: XLA knows the rule for a maximum and would compare x.
    return jnp.where(y != 0, tangent, jnp.zeros((), tangent.dtype))


def gate_batched(
    arguments: Sequence[jax.Array], axes: Sequence[int | None], apart: bool
) -> tuple[jax.Array, int]:
    pairs = list(zip(arguments, axes, strict=True))
    size = next(array.shape[axis] for array, axis in pairs if axis is not None)
    rows = [
        jnp.broadcast_to(array, (size, *array.shape))
        if axis is None
        else jnp.moveaxis(array, axis, 0)
        for array, axis in pairs
    ]
    return gate(rows[0], rows[1], rows[2], apart), 0


def on_cpu(x: jax.Array, forward: bool) -> jax.Array:
    """Lowers `keep` on CPUs to `max(x, min(x, 0))`, which is `x`.

    With `forward=False` it is `x` itself, and only the gradient is not fused.
    """
    return jnp.maximum(x, jnp.minimum(x, jnp.zeros((), x.dtype))) if forward else x


def kept_cotangent(
    cotangent: jax.Array | ad.Zero, x: jax.Array, forward: bool
) -> list[jax.Array | ad.Zero]:
    if isinstance(cotangent, ad.Zero):
        return [cotangent]
    return [keep_p.bind(cotangent, forward=True)]


keep_p.def_impl(lambda x, forward: x)
keep_p.def_abstract_eval(lambda x, forward: x)
ad.deflinear2(keep_p, kept_cotangent)
batching.defvectorized(keep_p)
mlir.register_lowering(keep_p, lambda context, x, forward: [x])
mlir.register_lowering(keep_p, mlir.lower_fun(on_cpu, multiple_results=False), platform="cpu")

gate_p.def_impl(by_input)
gate_p.def_abstract_eval(lambda tangent, x, y, apart: tangent)
ad.defjvp(gate_p, lambda change, tangent, x, y, apart: gate(change, x, y, apart), None, None)
ad.primitive_transposes[gate_p] = lambda cotangent, tangent, x, y, apart: [
    cotangent if isinstance(cotangent, ad.Zero) else gate(cotangent, x, y, apart),
    None,
    None,
]
batching.primitive_batchers[gate_p] = gate_batched
mlir.register_lowering(gate_p, mlir.lower_fun(by_input, multiple_results=False))
for platform in ("cuda", "rocm"):
    mlir.register_lowering(
        gate_p, mlir.lower_fun(by_result, multiple_results=False), platform=platform
    )
