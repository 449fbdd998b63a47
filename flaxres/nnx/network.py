"""The base class of all networks as modules of Flax's NNX."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flaxres.errors import InputError
from flaxres.models import network as linen
from flaxres.nnx._call import Call, Randomness
from flaxres.nnx._definition import DETERMINISTIC, Definition, traced
from flaxres.nnx.layers import Layer


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
