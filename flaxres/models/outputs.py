"""Names of a network's layers, and shapes of their outputs, recorded while it is traced."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from flax import linen as nn

# Starts the named scope of each layer in a trace; Flax's own scopes have names of methods too.
MARK = "layer:"

# Names of the layer of the classes; a head may have layers before it.
CLASSIFIERS = ("fc", "linear", "classifier", "head", "head.fc", "head.proj", "last_linear")
# Names of the heads that these layers are in.
HEADS = tuple(dict.fromkeys(layer.partition(".")[0] for layer in CLASSIFIERS))

LEAVES_OF_CLASSES = ("kernel", "bias")

Shapes = dict[str, tuple[int, ...]]
"""Shape of the output of each layer, by the layer's name; "" is the network itself."""


def in_torch(name: str) -> str:
    """Returns PyTorch's name of a layer, by its path here.

    The index of a layer in a list comes after a dot there, and the blocks of a RegNet's stage
    count from `b1`.

    Examples:
      >>> in_torch("layer1.0.convs_0"), in_torch("s1.0.conv1")
      ('layer1.0.convs.0', 's1.b1.conv1')
    """
    name = re.sub(r"_(\d+)(?=\.|$)", r".\1", name)
    return re.sub(r"^(s\d+)\.(\d+)", lambda match: f"{match[1]}.b{int(match[2]) + 1}", name)


def classifies(path: Sequence[str]) -> bool:
    """Returns whether a parameter, by its path in a network, is one of the layer of the classes.

    Examples:
      >>> classifies(["head", "fc", "bias"]), classifies(["head", "norm", "bias"])
      (True, False)
      >>> classifies(["head", "kernel"]), classifies(["head", "pos_embed"])
      (True, False)
    """
    *layer, leaf = path
    return ".".join(layer) in CLASSIFIERS and leaf in LEAVES_OF_CLASSES


def layer_name(module: nn.Module) -> str:
    """Returns the name of a layer within its network, as in PyTorch: `layer1.0.conv1`."""
    return in_torch(".".join(module.path))


@contextlib.contextmanager
def recorded() -> Iterator[Shapes]:
    """Records the output of every layer that is called, in the order in which they return.

    The first call of a layer counts. Its equations are in the named scope `MARK` and its name.
    """
    shapes: Shapes = {}

    def record(
        call: Callable[..., Any],
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        if context.method_name != "__call__":
            return call(*arguments, **keywords)
        name = layer_name(context.module)
        with jax.named_scope(MARK + name):
            output = call(*arguments, **keywords)
        shapes.setdefault(name, tuple(_last(output).shape))
        return output

    with nn.intercept_methods(record):
        yield shapes


def _last(output: Any) -> Any:
    """Returns the last array of an output that has several in order."""
    if isinstance(output, dict):
        output = list(output.values())
    return _last(output[-1]) if isinstance(output, list | tuple) else output
