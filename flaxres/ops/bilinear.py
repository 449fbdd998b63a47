"""Definition of primitives that are linear in each of two operands, or in the first one."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from flaxres.ops.kept import by_platform

Form = Callable[..., jax.Array]


def define(
    primitive: Primitive,
    usual: Form,
    left: Any,
    right: Any,
    cpu_form: Form | None = None,
    cpu_lowering: Callable[..., Any] | None = None,
    batching_rule: Callable[..., Any] | None = None,
) -> None:
    """Registers the rules of a bilinear primitive.

    Args:
      primitive: the primitive to define.
      usual: its form, unless `cpu_form` and `cpu_lowering` replace it on CPUs.
      left: transpose rule for the first operand.
      right: transpose rule for the second operand; None where that holds integers.
      cpu_form: its form on CPUs under `jax.vmap`.
      cpu_lowering: its lowering rule on CPUs without `jax.vmap`.
      batching_rule: its rule under `jax.vmap`, in place of `jax.vmap` of its form.
    """

    def shape(*operands: ShapedArray, **settings: Any) -> ShapedArray:
        # Not `jax.eval_shape`: its result lacks the mesh within a `jax.shard_map` over some axes.
        program = jax.make_jaxpr(functools.partial(usual, **settings))(*operands)
        aval: ShapedArray = program.out_avals[0]
        return aval

    def batched(
        operands: Sequence[jax.Array], axes: Sequence[int | None], **settings: Any
    ) -> tuple[jax.Array, int]:
        form = functools.partial(usual, **settings)
        if cpu_form is not None:
            on_cpu = functools.partial(cpu_form, **settings)
            form = functools.partial(by_platform, cpu=on_cpu, default=form)
        return jax.vmap(form, in_axes=tuple(axes))(*operands), 0

    @functools.cache
    def program(**settings: Any) -> Form:
        return jax.jit(functools.partial(primitive.bind, **settings))

    primitive.def_impl(lambda *operands, **settings: program(**settings)(*operands))
    primitive.def_abstract_eval(shape)
    ad.defbilinear(primitive, left, right)
    batching.primitive_batchers[primitive] = batching_rule or batched
    mlir.register_lowering(primitive, mlir.lower_fun(usual, multiple_results=False))
    if cpu_lowering is not None:
        mlir.register_lowering(primitive, cpu_lowering, platform="cpu")
