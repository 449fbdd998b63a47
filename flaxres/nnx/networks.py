"""Networks as modules of Flax's NNX, and the way between them and Linen variables."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn, nnx
from jaxtyping import Array, Float

from flaxres.errors import InputError
from flaxres.models import (
    densenet,
    network as linen,
    registry,
    regnet,
    res2net,
    resnest,
    resnet,
    resnet9,
    resnetv2,
    sknet,
)
from flaxres.nnx._call import Call, Randomness, is_defined_by, value_of
from flaxres.nnx._definition import DETERMINISTIC, Definition, Path, traced
from flaxres.nnx.layers import CLASSES, Layer


class Network(Layer):
    """A network as a module of Flax's NNX; the base class of all of them.

    Parameters have the names and, for the same key, the initial values that the Linen network
    gives them: `model.init(rngs.params(), images)`. It starts in training mode, as Flax's own
    layers do: call `eval()` before inference.

    Args:
      *arguments: attributes of the Linen network of the same name, in its order.
      rngs: `rngs.params()` is the key of the parameters. With dropout or stochastic depth, the
        network keeps a fork of `rngs.dropout` for the keys of its calls.
      variables: initial values in place of random ones: Linen's `{"params", "batch_stats"}`.
      **attributes: attributes of the Linen network, e.g. `num_classes`.

    Call: normalised float images `(N, H, W, C)` -> logits `(N, num_classes)`. In training mode it
    updates the batch statistics. `features=True` returns a dictionary of activations, as the Linen
    network does. `rngs` replaces the network's own keys of dropout and stochastic depth.

    Raises:
      InputError: neither `rngs` nor `variables` is given, `variables` do not fit the network; or
        as the Linen network.
      TypeError: an attribute is unknown.

    Examples:
      >>> import flaxres.nnx
      >>> model = flaxres.nnx.ResNet9(depths=(1,), widths=(4,), stem_width=4, rngs=nnx.Rngs(0))
      >>> model.eval()
      >>> nnx.jit(lambda model, images: model(images))(model, jnp.zeros((2, 8, 8, 3))).shape
      (2, 10)
    """

    of: ClassVar[type[linen.Network]] = linen.Network

    def __init__(
        self,
        *arguments: Any,
        rngs: nnx.Rngs | None = None,
        variables: Mapping[str, Any] | None = None,
        **attributes: Any,
    ) -> None:
        model = self.of(*arguments, **attributes)
        root, init, shapes = traced(model.clone(parent=None, name=None))
        if variables is not None:
            _require_same_tree(variables, shapes)
        elif isinstance(rngs, nnx.Rngs):
            variables = init(rngs.params())
        else:
            raise InputError(
                f"rngs (={rngs!r}): {type(self).__name__} draws its parameters from an nnx.Rngs: "
                "give rngs=nnx.Rngs(0)"
            )
        self._fill(root, variables)
        if any(definition.mode == DETERMINISTIC for definition in _definitions(root)):
            self.rngs = nnx.data(rngs.dropout.fork() if rngs is not None else None)

    def __call__(
        self,
        images: Float[Array, "n h w c"],
        *,
        features: bool = False,
        rngs: Randomness | None = None,
    ) -> Any:
        rngs = vars(self).get("rngs") if rngs is None else rngs
        return Call(self, self._definition).run((images,), {"features": features}, rngs)


class ResNet(Network):
    """`flaxres.ResNet` as a module of Flax's NNX.

    Attributes, arguments and the call are those of `flaxres.nnx.networks.Network`.

    Examples:
      >>> import flaxres.nnx
      >>> model = nnx.eval_shape(lambda: flaxres.nnx.ResNet(num_classes=10, rngs=nnx.Rngs(0)))
      >>> model.fc.bias.shape
      (10,)
    """

    of = resnet.ResNet


class ResNetV2(Network):
    """`flaxres.ResNetV2` as a module of Flax's NNX.

    Attributes, arguments and the call are those of `flaxres.nnx.networks.Network`.

    Examples:
      >>> import flaxres.nnx
      >>> model = nnx.eval_shape(lambda: flaxres.nnx.ResNetV2(rngs=nnx.Rngs(0)))
      >>> model.stages[0].blocks[0].conv1.kernel.shape
      (1, 1, 64, 64)
    """

    of = resnetv2.ResNetV2


class ResNet9(Network):
    """`flaxres.ResNet9` as a module of Flax's NNX.

    Attributes, arguments and the call are those of `flaxres.nnx.networks.Network`.

    Examples:
      >>> import flaxres.nnx
      >>> model = nnx.eval_shape(lambda: flaxres.nnx.ResNet9(rngs=nnx.Rngs(0)))
      >>> model.layer1[0].conv1.kernel.shape
      (3, 3, 64, 128)
    """

    of = resnet9.ResNet9


class DenseNet(Network):
    """`flaxres.DenseNet` as a module of Flax's NNX.

    Attributes, arguments and the call are those of `flaxres.nnx.networks.Network`.

    Examples:
      >>> import flaxres.nnx
      >>> model = nnx.eval_shape(lambda: flaxres.nnx.DenseNet(depths=(1, 1), rngs=nnx.Rngs(0)))
      >>> model.features.denseblock1.denselayer1.conv2.kernel.shape
      (3, 3, 128, 32)
    """

    of = densenet.DenseNet


class Res2Net(Network):
    """`flaxres.Res2Net` as a module of Flax's NNX.

    Attributes, arguments and the call are those of `flaxres.nnx.networks.Network`.

    Examples:
      >>> import flaxres.nnx
      >>> model = nnx.eval_shape(lambda: flaxres.nnx.Res2Net(base_width=26, rngs=nnx.Rngs(0)))
      >>> model.layer1[0].convs_0.kernel.shape
      (3, 3, 26, 26)
    """

    of = res2net.Res2Net


class ResNeSt(Network):
    """`flaxres.ResNeSt` as a module of Flax's NNX.

    Attributes, arguments and the call are those of `flaxres.nnx.networks.Network`.

    Examples:
      >>> import flaxres.nnx
      >>> model = nnx.eval_shape(lambda: flaxres.nnx.ResNeSt(rngs=nnx.Rngs(0)))
      >>> model.layer1[0].conv2.fc1.kernel.shape
      (1, 1, 64, 32)
    """

    of = resnest.ResNeSt


class SKNet(Network):
    """`flaxres.SKNet` as a module of Flax's NNX.

    Attributes, arguments and the call are those of `flaxres.nnx.networks.Network`.

    Examples:
      >>> import flaxres.nnx
      >>> model = nnx.eval_shape(lambda: flaxres.nnx.SKNet(rngs=nnx.Rngs(0)))
      >>> model.layer1[0].conv2.paths_0.conv.kernel.shape
      (3, 3, 32, 64)
    """

    of = sknet.SKNet


class RegNet(Network):
    """`flaxres.RegNet` as a module of Flax's NNX.

    Attributes, arguments and the call are those of `flaxres.nnx.networks.Network`.

    Examples:
      >>> import flaxres.nnx
      >>> model = nnx.eval_shape(lambda: flaxres.nnx.RegNet(rngs=nnx.Rngs(0)))
      >>> model.s1[0].conv2.conv.kernel.shape
      (3, 3, 8, 24)
    """

    of = regnet.RegNet


NETWORKS: dict[type[linen.Network], type[Network]] = {
    network.of: network
    for network in (ResNet, ResNetV2, ResNet9, DenseNet, Res2Net, ResNeSt, SKNet, RegNet)
}
for _linen, _network in NETWORKS.items():
    CLASSES[_linen] = _network


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
      >>> import flaxres.nnx
      >>> linen = flaxres.ResNet9(depths=(1,), widths=(4,), stem_width=4)
      >>> variables = linen.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
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
    is_head = isinstance(definition.module, nn.Dense) or definition.path == ("head", "fc")
    return is_head and isinstance(module, nnx.Linear) and value_of(module.bias) is not None


def _definitions(definition: Definition) -> Iterator[Definition]:
    yield definition
    for child in definition.children.values():
        yield from _definitions(child)


def _require_same_tree(variables: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    """Checks that variables have the leaves of a network.

    Raises:
      InputError: a leaf is missing, unexpected or of another shape.
    """
    given, wanted = (
        {
            ".".join(str(getattr(key, "key", key)) for key in path): jnp.shape(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (variables, shapes)
    )
    for name in sorted(given.keys() | wanted.keys()):
        if name not in given:
            problem = f"lack {name}"
        elif name not in wanted:
            problem = f"have {name}, which the network lacks"
        elif given[name] != wanted[name]:
            problem = f"have {name} of shape {given[name]}, the network of {wanted[name]}"
        else:
            continue
        raise InputError(
            f"the variables {problem}: give those of the network's own init or load_weights, "
            "with its scan_blocks"
        )
