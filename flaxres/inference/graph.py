"""The operations of a network, in one list that tells which depend on its images."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Primitive

from flaxres.ops.kept import keep_p

# Calls of other functions, whose operations take the place of the call, and the setting that holds
# the function.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


class Origin(enum.IntEnum):
    """The inputs on which an array depends; the images outweigh the variables."""

    NOTHING = 0
    VARIABLES = 1
    IMAGES = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """An array of a program.

    Attributes:
      shape, dtype: of the array.
      origin: what it depends on.
      key: number of the way in which it is computed, -1 if it depends on the images. Equal keys
        mean equal arrays.
      array: its numbers, if they stand in the program.
    """

    shape: tuple[int, ...]
    dtype: Any
    origin: Origin
    key: int = -1
    array: Any = None


class Operation(Protocol):
    """Computes values from others; called with the operands' arrays."""

    @property
    def operands(self) -> tuple[Value, ...]: ...

    @property
    def results(self) -> tuple[Value, ...]: ...

    def __call__(self, *operands: Any) -> Sequence[Any]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """An operation with its operands and results."""

    primitive: Primitive
    settings: dict[str, Any]
    operands: tuple[Value, ...]
    results: tuple[Value, ...]

    @property
    def origin(self) -> Origin:
        """The inputs on which the results depend."""
        return origin_of(self.operands)

    def __call__(self, *operands: Any) -> Sequence[Any]:
        """Computes the results."""
        settings = self.primitive.get_bind_params(self.settings)
        computed = self.primitive.bind(*operands, **settings)
        return computed if self.primitive.multiple_results else [computed]


def origin_of(operands: Sequence[Value]) -> Origin:
    """Returns what the results of an operation depend on."""
    return max((operand.origin for operand in operands), default=Origin.NOTHING)


@dataclasses.dataclass(frozen=True)
class Graph:
    """The operations of a function of variables and images.

    Attributes:
      steps: in an order in which they can be computed.
      inputs: the leaves of the variables, and the images.
      results: of the function.
    """

    steps: list[Step]
    inputs: list[Value]
    results: list[Value]


class Keys:
    """Numbers of keys, so that a key does not hold those that it comes from.

    Examples:
      >>> keys = Keys()
      >>> keys("add", 1, 2) == keys("add", 1, 2) != keys("add", 2, 1)
      True
    """

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def __call__(self, *parts: Hashable) -> int:
        """Returns the number of a key."""
        return self._numbers.setdefault(parts, len(self._numbers))


def graph_of(program: ClosedJaxpr, leaves: int, keys: Keys) -> Graph:
    """Returns the operations of a program.

    Args:
      program: a function of `leaves` arrays, which are the same in every call, and of others.
      leaves: their number.
      keys: those of other programs of the same arrays.
    """
    steps: list[Step] = []

    def constant(array: Any) -> Value:
        array = np.asarray(array)
        key = keys("constant", array.shape, str(array.dtype), array.tobytes())
        return Value(array.shape, array.dtype, Origin.NOTHING, key, array)

    def inline(jaxpr: Jaxpr, constants: Sequence[Value], inputs: Sequence[Value]) -> list[Value]:
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *inputs], strict=True))

        def value(atom: Any) -> Value:
            return constant(atom.val) if isinstance(atom, Literal) else values[atom]

        for equation in jaxpr.eqns:
            operands = [value(atom) for atom in equation.invars]
            if (name := CALLS.get(equation.primitive.name)) is not None:
                inner = equation.params[name]
                results = inline(inner.jaxpr, [constant(c) for c in inner.consts], operands)
            elif equation.primitive is keep_p:
                results = operands
            else:
                results = results_of(equation, operands)
                step = Step(equation.primitive, equation.params, tuple(operands), tuple(results))
                steps.append(step)
            values.update(zip(equation.outvars, results, strict=True))
        return [value(atom) for atom in jaxpr.outvars]

    def results_of(equation: Any, operands: Sequence[Value]) -> list[Value]:
        origin, avals = origin_of(operands), [variable.aval for variable in equation.outvars]
        if origin == Origin.IMAGES:
            return [Value(aval.shape, aval.dtype, origin) for aval in avals]
        name, settings = equation.primitive.name, repr(equation.params)
        key = keys(name, settings, *(operand.key for operand in operands))
        return [
            Value(aval.shape, aval.dtype, origin, keys("result", key, i))
            for i, aval in enumerate(avals)
        ]

    inputs = [
        Value(aval.shape, aval.dtype, Origin.VARIABLES, keys("leaf", i))
        if i < leaves
        else Value(aval.shape, aval.dtype, Origin.IMAGES)
        for i, aval in enumerate(program.in_avals)
    ]
    constants = [constant(array) for array in program.consts]
    return Graph(steps, inputs, inline(program.jaxpr, constants, inputs))


def known_arrays(graph: Graph, wanted: Sequence[Value], leaves: Sequence[Any]) -> dict[int, Any]:
    """Computes values that depend on the variables alone.

    Args:
      graph: their operations.
      wanted: the values.
      leaves: the variables, which are the graph's first inputs.

    Returns:
      The arrays by key.
    """
    given = {value.key: leaf for value, leaf in zip(graph.inputs, leaves, strict=False)}
    computed = [value.key for value in wanted if value.key not in given]

    def compute(leaves: Sequence[Any]) -> list[Any]:
        arrays = dict(zip(given, leaves, strict=True))
        for step in graph.steps:
            if step.origin == Origin.IMAGES:
                continue
            operands = [
                arrays[value.key] if value.array is None else value.array for value in step.operands
            ]
            keys = (result.key for result in step.results)
            arrays.update(zip(keys, step(*operands), strict=True))
        return [arrays[key] for key in computed]

    found = jax.jit(compute)(list(given.values())) if computed else []
    return given | dict(zip(computed, found, strict=True))
