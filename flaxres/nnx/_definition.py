"""Definitions: the Linen module of every layer of a network, found by tracing the network once."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxres.models.layers import BatchNorm
from flaxres.models.network import Network
from flaxres.models.stochastic import Dropout

Path = tuple[str, ...]


class Mode(NamedTuple):
    """A mode that `train()` and `eval()` of Flax's NNX set.

    Attributes:
      attribute: its name in NNX.
      argument: the argument of the Linen module's call that it decides.
    """

    attribute: str
    argument: str

    def value(self, setting: bool) -> bool:
        """Returns the argument that stands for a setting of the attribute."""
        return setting if self.argument == self.attribute else not setting


RUNNING_AVERAGE = Mode("use_running_average", "use_running_average")
DETERMINISTIC = Mode("deterministic", "train")


class Definition:
    """The Linen module of a layer, block or network, and its place in the network.

    Two definitions are equal if they are at the same place of equal networks, so that NNX takes
    layers of two such networks for the same program.

    Attributes:
      network: the network.
      path: names of the layers that lead to this one; () is the network itself.
      module: the Linen module, unbound.
      arguments: of its call by the network, without the first one.
      keywords: keyword arguments of its call by the network.
      variables: the collection of each variable, by the variable's name.
      children: the definitions of the layers in it, by their names.
      mode: the mode that its call depends on, or None.
    """

    def __init__(
        self,
        network: Network,
        path: Path,
        module: nn.Module,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
    ) -> None:
        self.network, self.path, self.module = network, path, module
        self.arguments, self.keywords = arguments, keywords
        self.variables: dict[str, str] = {}
        self.children: dict[str, Definition] = {}
        self.mode = _mode_of(module)
        self._hash = hash((network, path))

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Definition) and (self.path, self.network) == (
            other.path,
            other.network,
        )

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"{type(self.module).__name__} at {'.'.join(self.path) or 'the root'}"

    def __deepcopy__(self, memo: Any) -> "Definition":
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return definition_at, (self.network, self.path)


def _mode_of(module: nn.Module) -> Mode | None:
    """Returns the mode that a Linen module's call depends on."""
    if isinstance(module, BatchNorm):
        return RUNNING_AVERAGE
    stochastic = getattr(module, "stochastic", False)  # of a block
    return DETERMINISTIC if stochastic or isinstance(module, Dropout) else None


class Traced(NamedTuple):
    """A traced network.

    Attributes:
      root: the definition of the network.
      init: the network's compiled `init`, of a key alone.
      shapes: shapes and dtypes of its variables.
    """

    root: Definition
    init: Callable[[jax.Array], dict[str, Any]]
    shapes: dict[str, Any]


@functools.lru_cache(maxsize=128)
def traced(network: Network) -> Traced:
    """Traces a network's `init` and returns the definitions of its layers.

    Args:
      network: a Linen network without a parent.
    """
    found: dict[Path, Definition] = {}

    def record(
        call: Callable[..., Any],
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        path = context.module.path
        if context.method_name == "__call__" and path not in found:
            module = context.module.clone(parent=None, name=None)
            found[path] = Definition(network, path, module, arguments[1:], dict(keywords))
        return call(*arguments, **keywords)

    side = network.probe_side  # no leaf depends on it

    @jax.jit
    def init(key: jax.Array) -> dict[str, Any]:
        # Not outside: the caller may be tracing, and its tracers must not stay in this program.
        images = jnp.zeros((1, side, side, network.in_channels), jnp.float32)
        return dict(network.init(key, images))

    with nn.intercept_methods(record):
        shapes = jax.eval_shape(init, jax.random.key(0))
    if network.remat:  # the arguments above are tracers
        plain = network.clone(remat=False)
        for path, definition in found.items():
            definition.arguments = definition_at(plain, path).arguments
    for path, definition in found.items():
        if path:
            found[path[:-1]].children[path[-1]] = definition
    for collection, tree in shapes.items():
        _add_variables(found[()], collection, tree)
    return Traced(found[()], init, shapes)


def _add_variables(definition: Definition, collection: str, tree: Mapping[str, Any]) -> None:
    """Adds the variables of a collection to a definition and to those below it."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            _add_variables(definition.children[name], collection, value)
        else:
            definition.variables[name] = collection


def definition_at(network: Network, path: Path) -> Definition:
    """Returns the definition of the layer at `path` in a network."""
    definition = traced(network).root
    for name in path:
        definition = definition.children[name]
    return definition
