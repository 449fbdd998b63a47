"""Calls of layers: the Linen definition runs on the variables of the NNX layers.

A method interceptor of Linen decides the mode of each layer in it, and hands the call of a layer
that the user replaced to its replacement. The state of a replacement travels through Linen as a
collection of its own, so that `nn.remat` and gradients treat it as they treat parameters.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn, nnx

from flaxres.errors import InputError
from flaxres.models.layers import BatchNorm
from flaxres.models.stage import SCANNED
from flaxres.nnx._definition import DETERMINISTIC, RUNNING_AVERAGE, Definition, Path
from flaxres.ops.norm import Form

REPLACED, LEAVES = "replaced", "leaves"
Randomness = nnx.Rngs | nnx.RngStream | jax.Array


def value_of(variable: Any) -> Any:
    """Returns the array of a variable; an array stands for itself."""
    return variable.get_value() if isinstance(variable, nnx.Variable) else variable


def is_defined_by(layer: Any, definition: Definition) -> bool:
    """Returns whether a layer is the one that a definition describes, and no replacement."""
    return getattr(layer, "_definition", None) == definition


@dataclasses.dataclass
class Replacement:
    """A module in the place of one of the network's own layers.

    Attributes:
      module: the module.
      graphdef: its structure.
      structure: the structure of its state.
      changed: places of the leaves of its state that its call has changed.
    """

    module: nnx.Module
    graphdef: Any
    structure: Any
    changed: set[int] = dataclasses.field(default_factory=set)

    def call(self, leaves: tuple[Any, ...], x: Any) -> tuple[Any, tuple[Any, ...]]:
        """Calls a copy of the module with the given leaves; returns the result and new leaves."""
        module = nnx.merge(self.graphdef, jax.tree.unflatten(self.structure, leaves))
        result = module(x)
        new = tuple(jax.tree.leaves(nnx.state(module)))
        self.changed |= {
            i for i, pair in enumerate(zip(leaves, new, strict=True)) if pair[0] is not pair[1]
        }
        return result, new

    def write(self, leaves: tuple[Any, ...]) -> None:
        """Writes the changed leaves to the module.

        Variables that have not changed are left alone, because NNX forbids writing to those of an
        outer trace.
        """
        flat = nnx.to_flat_state(jax.tree.unflatten(self.structure, leaves))
        counts = [len(jax.tree.leaves(variable)) for _, variable in flat]
        starts = [sum(counts[:i]) for i in range(len(counts))]
        changed = [
            pair
            for pair, start, count in zip(flat, starts, counts, strict=True)
            if self.changed & set(range(start, start + count))
        ]
        if changed:
            nnx.update(self.module, nnx.from_flat_state(changed))


class Call:
    """A call of a layer: its variables as Linen takes them, and what the interceptor needs.

    Attributes:
      root: the definition of the layer that is called.
      variables: collections of nested dictionaries, as Linen takes them.
      layers: the layers of flaxres in it, by their paths below the root.
      replacements: the other modules, likewise.
    """

    def __init__(self, layer: nnx.Module, definition: Definition) -> None:
        self.root = definition
        self.variables: dict[str, Any] = {}
        self.layers: dict[Path, tuple[nnx.Module, Definition]] = {}
        self.replacements: dict[Path, Replacement] = {}
        self._calls_replacement = False
        self._collect(layer, definition, ())

    def _collect(self, layer: nnx.Module, definition: Definition, path: Path) -> None:
        """Adds a layer and those in it."""
        self.layers[path] = layer, definition
        for name, collection in definition.variables.items():
            self._put(collection, (*path, name), value_of(_attribute(layer, definition, name)))
        for name, child in definition.children.items():
            module = _attribute(layer, definition, name)
            if is_defined_by(module, child):
                self._collect(module, child, (*path, name))
            else:
                self._replace(module, child, (*path, name))

    def _replace(self, module: Any, definition: Definition, path: Path) -> None:
        """Adds a module in the place of a layer."""
        require_replaceable(module, definition)
        graphdef, state = nnx.split(module)
        leaves, structure = jax.tree.flatten(state)
        self.replacements[path] = Replacement(module, graphdef, structure)
        self._put(REPLACED, (*path, LEAVES), tuple(leaves))

    def _put(self, collection: str, path: Path, value: Any) -> None:
        tree = self.variables.setdefault(collection, {})
        for name in path[:-1]:
            tree = tree.setdefault(name, {})
        tree[path[-1]] = value

    def run(
        self, arguments: tuple[Any, ...], keywords: dict[str, Any], rngs: Randomness | None
    ) -> Any:
        """Runs the definition, and writes new statistics and states to their layers."""
        trained = [path for path in self.layers if self._trains(path, RUNNING_AVERAGE)]
        mutable = ["batch_stats"] * bool(trained) + [REPLACED] * bool(self.replacements)
        keys = {}
        if any(self._trains(path, DETERMINISTIC) for path in self.layers):
            keys["dropout"] = self._key(rngs)
        with nn.intercept_methods(self._intercept):
            result = self.root.module.apply(
                self.variables, *arguments, rngs=keys, mutable=mutable or False, **keywords
            )
        if not mutable:
            return result
        result, updated = result
        for path in trained:
            layer, definition = self.layers[path]
            for name, collection in definition.variables.items():
                if collection == "batch_stats":
                    write(layer, name, _at(updated[collection], (*path, name)))
        for path, replacement in self.replacements.items():
            replacement.write(_at(updated[REPLACED], (*path, LEAVES)))
        return result

    def _trains(self, path: Path, mode: Any) -> bool:
        """Returns whether a layer has a mode, and is not set to inference."""
        layer, definition = self.layers[path]
        frozen = isinstance(definition.module, BatchNorm) and definition.module.frozen
        return definition.mode == mode and not getattr(layer, mode.attribute) and not frozen

    def _key(self, rngs: Randomness | None) -> jax.Array:
        """Returns the key of dropout and stochastic depth."""
        if isinstance(rngs, nnx.Rngs | nnx.RngStream):
            stream: Any = rngs.dropout if isinstance(rngs, nnx.Rngs) else rngs
            key: jax.Array = stream()
            return key
        if rngs is None:
            raise InputError(
                f"{self.root} draws random numbers in training and has no keys for them: call it "
                "with rngs=nnx.Rngs(dropout=0), or call eval() first"
            )
        return rngs

    def _intercept(
        self,
        call: Callable[..., Any],
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        path = context.module.path
        # A replacement may be a layer of flaxres, whose paths belong to another call.
        if context.method_name != "__call__" or self._calls_replacement:
            return call(*arguments, **keywords)
        if path in self.replacements:
            return self._call_replacement(context.module, arguments, keywords)
        layer, definition = self.layers[path]
        if definition.mode is not None:
            value = definition.mode.value(getattr(layer, definition.mode.attribute))
            if definition.mode.argument in keywords:
                keywords = {**keywords, definition.mode.argument: value}
            else:
                arguments = (arguments[0], value, *arguments[2:])
        return call(*arguments, **keywords)

    def _call_replacement(
        self, linen: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> Any:
        """Calls a replacement with the first argument, and what its place joins to a norm."""
        self._calls_replacement = True
        try:
            leaves = linen.get_variable(REPLACED, LEAVES, ())
            y, leaves = self.replacements[linen.path].call(leaves, arguments[0])
        finally:
            self._calls_replacement = False
        linen.put_variable(REPLACED, LEAVES, leaves)
        for form in (*arguments, *keywords.values()):
            if isinstance(form, Form):
                zeros = jnp.zeros((1, 1, 1, y.shape[-1]), y.dtype)
                return form.apply(y.dtype, y, zeros, zeros + 1, zeros)
        return y


def require_replaceable(module: Any, definition: Definition) -> None:
    """Checks that a module can be called in the place of a layer.

    Raises:
      InputError: it is no callable module, or the layer is part of scanned blocks.
    """
    place = ".".join(definition.path)
    if not isinstance(module, nnx.Module) or not callable(module):
        raise InputError(
            f"{place} is a {type(module).__name__}: the rule is an nnx.Module that can be called; "
            "wrap a function in nnx.Sequential"
        )
    if SCANNED in definition.path:
        raise InputError(
            f"{place} is part of scanned blocks, which share one trace, and can't be replaced: "
            "create the network with scan_blocks=False"
        )


def _attribute(layer: nnx.Module, definition: Definition, name: str) -> Any:
    """Returns a variable or a layer of a layer."""
    try:
        return getattr(layer, name)
    except AttributeError:
        raise InputError(
            f"{definition} has no {name!r} any more: assign an nnx.Module or a variable to it"
        ) from None


def write(layer: nnx.Module, name: str, value: jax.Array) -> None:
    """Writes an array to a variable of a layer."""
    variable = getattr(layer, name)
    if isinstance(variable, nnx.Variable):
        variable.set_value(value)
    else:
        setattr(layer, name, value)


def _at(tree: Any, path: Path) -> Any:
    for name in path:
        tree = tree[name]
    return tree
