"""Definition of primitives that native code computes where it can be called."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from flaxres.ops import native


def define_call(
    primitive: Primitive,
    plain: Callable[..., Any],
    call: Callable[..., Any] | None = None,
    kind: str = "training",
) -> None:
    """Registers the rules of an operation that has a plain form.

    Args:
      primitive: the operation.
      plain: its form in JAX's operations, for shapes, derivatives, `jax.vmap` and other platforms.
      call: its lowering rule as a native call.
      kind: of the native code, which must compute the dtype of the first operand.
    """
    several = primitive.multiple_results

    def shapes(*operands: ShapedArray, **settings: Any) -> Any:
        program = jax.make_jaxpr(functools.partial(plain, **settings))(*operands)
        return list(program.out_avals) if several else program.out_avals[0]

    def batched(operands: Any, axes: Any, **settings: Any) -> Any:
        mapped = jax.vmap(functools.partial(plain, **settings), in_axes=tuple(axes))(*operands)
        return (mapped, [0] * len(mapped)) if several else (mapped, 0)

    def derivative(operands: Any, tangents: Any, **settings: Any) -> Any:
        changes = [ad.instantiate_zeros(tangent) for tangent in tangents]
        form = functools.partial(plain, **settings)
        _, out = jax.jvp(form, tuple(operands), tuple(changes))
        return primitive.bind(*operands, **settings), out

    def rule(context: mlir.LoweringRuleContext, *operands: Any, **settings: Any) -> Any:
        first: Any = context.avals_in[0]
        able = native.callable_in(context) and native.computes(first.dtype, kind)
        if call is not None and able:
            return call(context, *operands, **settings)
        form = functools.partial(plain, **settings)
        return mlir.lower_fun(form, multiple_results=several)(context, *operands)

    @functools.cache
    def program(**settings: Any) -> Callable[..., Any]:
        return jax.jit(functools.partial(primitive.bind, **settings))

    primitive.def_impl(lambda *operands, **settings: program(**settings)(*operands))
    primitive.def_abstract_eval(shapes)
    batching.primitive_batchers[primitive] = batched
    ad.primitive_jvps[primitive] = derivative
    mlir.register_lowering(primitive, mlir.lower_fun(plain, multiple_results=several))
    mlir.register_lowering(primitive, rule, platform="cpu")
