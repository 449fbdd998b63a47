"""Networks of NNX by name, and the place of each of their leaves among Linen variables."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from flax import nnx

from flaxres.errors import InputError
from flaxres.models import network as linen, registry
from flaxres.models.outputs import CLASSIFIERS
from flaxres.nnx._call import is_defined_by, value_of
from flaxres.nnx._definition import Definition, Path
from flaxres.nnx.network import Network
from flaxres.nnx.networks import NETWORKS


def create_model(name: str, *, rngs: nnx.Rngs, **attributes: Any) -> Network:
    """Creates the network called `name` as a module of Flax's NNX.

    Args:
      name: a name from `flaxres.list_models`.
      rngs: `rngs.params()` is the key of the parameters.
      **attributes: attributes of the network, e.g. `num_classes`.

    Raises:
      InputError: the name or an attribute is unknown; the message names the nearest ones.

    Examples:
      >>> import flaxres.nnx
      >>> model = flaxres.nnx.create_model("test_resnet", num_classes=10, rngs=nnx.Rngs(0))
      >>> model.fc.kernel.shape
      (96, 10)
    """
    return _created(registry.create_model(name, **attributes), rngs, None)


def from_linen(
    model: linen.Network, variables: Mapping[str, Any], *, rngs: nnx.Rngs | None = None
) -> Network:
    """Returns a Linen network with its variables as a module of Flax's NNX.

    Arrays are shared, not copied. `to_linen` is the inverse.

    Args:
      model: the Linen network.
      variables: `{"params": ..., "batch_stats": ...}`.
      rngs: gives the keys of dropout and stochastic depth.

    Raises:
      InputError: the variables are not those of the network, and the message names a leaf; or the
        network is of a class of your own.

    Examples:
      >>> import flaxres.nnx, jax
      >>> linen = flaxres.ResNet9(depths=(1,), widths=(4,), stem_width=4)
      >>> variables = linen.init(jax.random.key(0), jax.numpy.zeros((1, 8, 8, 3)))
      >>> model = flaxres.nnx.from_linen(linen, variables)
      >>> bool((model.conv1.kernel == variables["params"]["conv1"]["kernel"]).all())
      True
    """
    return _created(model, rngs, variables)


def _created(
    model: linen.Network, rngs: nnx.Rngs | None, variables: Mapping[str, Any] | None
) -> Network:
    """Returns the NNX network of a Linen network."""
    if type(model) not in NETWORKS:
        raise InputError(
            f"{type(model).__name__} is none of {', '.join(kind.__name__ for kind in NETWORKS)}: "
            "wrap it in flax.nnx.bridge.ToNNX"
        )
    names = [field.name for field in dataclasses.fields(model) if field.init]
    own = {name: getattr(model, name) for name in names if name not in ("parent", "name")}
    return NETWORKS[type(model)](rngs=rngs, variables=variables, **own)


def to_linen(model: Network) -> tuple[linen.Network, dict[str, Any]]:
    """Returns the Linen network of an NNX network, and its variables.

    Arrays are shared, not copied. A head that was replaced by an `nnx.Linear` counts as the
    network's own, with another number of classes.

    Args:
      model: the network.

    Returns:
      `(network, {"params": ..., "batch_stats": ...})`.

    Raises:
      InputError: another layer was replaced.

    Examples:
      >>> import flaxres.nnx
      >>> model = flaxres.nnx.ResNet9(depths=(1,), widths=(4,), stem_width=4, rngs=nnx.Rngs(0))
      >>> linen, variables = flaxres.nnx.to_linen(model)
      >>> linen.widths, variables["params"]["conv1"]["kernel"].shape
      ((4,), (3, 3, 3, 4))
    """
    variables: dict[str, Any] = {}
    network = model._definition.network
    for leaf in leaves_of(model):
        tree = variables
        for name in leaf.path[:-1]:
            tree = tree.setdefault(name, {})
        tree[leaf.path[-1]] = value_of(getattr(leaf.holder, leaf.path[-1])).reshape(leaf.shape)
        if isinstance(leaf.holder, nnx.Linear):
            network = network.clone(num_classes=leaf.shape[-1], parent=None)
    return network, variables


class Leaf(NamedTuple):
    """A variable of a network.

    Attributes:
      path: of the leaf in Linen's variables; the last part is its attribute's name.
      holder: the layer that has it.
      shape: its shape in Linen.
    """

    path: Path
    holder: Any
    shape: tuple[int, ...]


def leaves_of(model: Network) -> Iterator[Leaf]:
    """Yields the variables of a network with their places in Linen's variables.

    Raises:
      InputError: a layer was replaced, other than the head by an `nnx.Linear`.
    """
    yield from _leaves(model, model._definition, ())


def _leaves(layer: Any, definition: Definition, path: Path) -> Iterator[Leaf]:
    for name, collection in definition.variables.items():
        yield Leaf((collection, *path, name), layer, value_of(getattr(layer, name)).shape)
    for name, child in definition.children.items():
        module, place = getattr(layer, name), (*path, name)
        if is_defined_by(module, child):
            yield from _leaves(module, child, place)
        elif _is_head(module, child):
            kernel, bias = value_of(module.kernel).shape, value_of(module.bias).shape
            ones = (1, 1) if hasattr(child.module, "kernel_size") else ()  # a 1x1 convolution
            yield Leaf(("params", *place, "kernel"), module, (*ones, *kernel))
            yield Leaf(("params", *place, "bias"), module, bias)
        else:
            raise InputError(
                f"{'.'.join(place)} was replaced by a {type(module).__name__}, which has no place "
                "in the weights of the network: save nnx.state(model) with Orbax"
            )


def _is_head(module: Any, definition: Definition) -> bool:
    """Returns whether a module can stand for the head that a definition describes."""
    is_head = ".".join(definition.path) in CLASSIFIERS
    return is_head and isinstance(module, nnx.Linear) and value_of(module.bias) is not None
