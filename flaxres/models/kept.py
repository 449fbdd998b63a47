"""What the layers say to one platform's compiler alone, and how to leave it out.

`keep` is an identity that XLA's CPU compiler does not see through, and nothing on other devices. That compiler fuses a chain of elementwise
operations into every kernel that reads its end, and computes it again in each, transposed where the kernel is a gradient's. It leaves alone what has
two operands of its own shape and feeds a product or a convolution directly. A training step of ResNet-50 took 2.7 s without and takes 1.7 s with this
(two cores, batch 16). Of what a convolution gives `keep_gradient` keeps the gradient alone: nothing is fused with the convolution itself.

`gate` is the derivative of a ReLU: a tangent where the ReLU's input is above 0. On GPUs it looks at the result, which is in memory for the layers
that read it; the input, a norm and for a block's last ReLU a sum, XLA's GPU compiler would compute again from two arrays. `apart`, it looks at it
by itself: a norm's gradient is then two passes over the arrays, sums by channel and what they change, without one that writes the gated gradient for
both. Compiled for an H200, a training step of ResNet-50 moves 4 and 1% less for it (benchmarks/RESULTS.md); on TPUs it would move more.
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

keep_p = Primitive("flaxres_keep")
gate_p = Primitive("flaxres_gate")
plainly = contextvars.ContextVar("plainly", default=False)


@contextlib.contextmanager
def jax_operations_only() -> Iterator[None]:
    """Networks that are traced within consist of JAX's own operations, the same for all platforms: for converters, which know no others."""
    token = plainly.set(True)
    try:
        yield
    finally:
        plainly.reset(token)


def by_platform(*arguments: jax.Array, default: Callable[..., Any], **platforms: Callable[..., Any]) -> Any:
    """`lax.platform_dependent`, or within `jax_operations_only` its default."""
    return default(*arguments) if plainly.get() else lax.platform_dependent(*arguments, default=default, **platforms)


def varying_alike(*arrays: jax.Array) -> list[jax.Array]:
    """Within `jax.shard_map` the arrays as varying over each axis that one of them varies over, as operands of one primitive must: a parameter's
    cotangent is then summed over the devices. Elsewhere the arrays.
    """
    varying = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    axes = frozenset[str]().union(*varying)
    return [array if axes == own else lax.pcast(array, tuple(axes - own), to="varying") for array, own in zip(arrays, varying, strict=True)]


def keep(x: jax.Array, before: int = 3) -> jax.Array:
    """x; and its gradient, as it comes. `before`: kernel size of the convolution that reads it, since the products of 1x1 convolutions take rows."""
    if plainly.get():
        return x
    kept: jax.Array = keep_p.bind(x, rows=before == 1, value=True)
    return kept


def keep_gradient(x: jax.Array, before: int = 3) -> jax.Array:
    """x, which comes from a convolution of size `before` and is in memory; and its gradient, which that convolution's gradients read, as it comes."""
    if plainly.get():
        return x
    same: jax.Array = keep_p.bind(x, rows=before == 1, value=False)
    return same


def gate(tangent: jax.Array, x: jax.Array, y: jax.Array, apart: bool = False) -> jax.Array:
    """`tangent` where x is above 0, and 0 elsewhere (where x is no number, on GPUs `tangent`); y is `relu(x)`."""
    gated: jax.Array = gate_p.bind(*varying_alike(tangent, x, y), apart=apart)
    return gated


@jax.custom_jvp
def rectified(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, jnp.zeros((), x.dtype))


@rectified.defjvp
def rectified_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    y = rectified(*primals)
    return y, gate(*tangents, *primals, y)


def relu(x: jax.Array) -> jax.Array:
    """`max(x, 0)`; its derivative where x is 0 is 0."""
    return jax.nn.relu(x) if plainly.get() else rectified(x)


def by_input(tangent: jax.Array, x: jax.Array, y: jax.Array, apart: bool) -> jax.Array:
    return jnp.where(x > 0, tangent, jnp.zeros((), tangent.dtype))


def by_result(tangent: jax.Array, x: jax.Array, y: jax.Array, apart: bool) -> jax.Array:
    # Not `y > 0`: XLA knows that of a maximum, and would compare x.
    return jnp.where((lax.optimization_barrier(y) if apart else y) != 0, tangent, jnp.zeros((), tangent.dtype))


def gate_batched(arguments: Sequence[jax.Array], axes: Sequence[int | None], apart: bool) -> tuple[jax.Array, int]:
    size = next(array.shape[axis] for array, axis in zip(arguments, axes, strict=True) if axis is not None)
    pairs = zip(arguments, axes, strict=True)
    rows = [jnp.broadcast_to(array, (size, *array.shape)) if axis is None else jnp.moveaxis(array, axis, 0) for array, axis in pairs]
    return gate(rows[0], rows[1], rows[2], apart), 0


def on_cpu(x: jax.Array, rows: bool, value: bool) -> jax.Array:
    if not value:
        return x
    y = x.reshape(-1, x.shape[-1]) if rows else x
    return jnp.maximum(y, jnp.minimum(y, jnp.zeros((), y.dtype))).reshape(x.shape)


def kept_cotangent(cotangent: jax.Array | ad.Zero, x: jax.Array, rows: bool, value: bool) -> list[jax.Array | ad.Zero]:
    return [cotangent if isinstance(cotangent, ad.Zero) else keep_p.bind(cotangent, rows=rows, value=True)]


keep_p.def_impl(lambda x, rows, value: x)
keep_p.def_abstract_eval(lambda x, rows, value: x)
ad.deflinear2(keep_p, kept_cotangent)
batching.defvectorized(keep_p)
mlir.register_lowering(keep_p, lambda context, x, rows, value: [x])
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
    mlir.register_lowering(gate_p, mlir.lower_fun(by_result, multiple_results=False), platform=platform)
