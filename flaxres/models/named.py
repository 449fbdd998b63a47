"""The networks that `flaxres` exports by name, as functions with signatures and docstrings."""

import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from flaxres.models.network import Network
from flaxres.models.registry import MODELS
from flaxres.models.resnet import ResNet

Attributes = ParamSpec("Attributes")
Class = TypeVar("Class", bound=Network)

DOCSTRING = """Creates a {title} ({source}).

    Args:
      num_classes: outputs of the head; 0 returns the pooled features.
      **attributes: other attributes of `flaxres.{parent}`, which describes the call too.

    Returns:
      A Flax module.

    Raises:
      TypeError: an attribute is unknown.

    Examples:
      >>> import flaxres
      >>> model = flaxres.{name}(num_classes=5)
      >>> model.num_classes, len(model.depths)
      (5, {stages})
    """


def _named(
    name: str, parent: Callable[Attributes, Class], source: str
) -> Callable[Attributes, Class]:
    """Returns the row of a model as a function `name`, typed as its class."""
    row = MODELS[name.lower()]

    def create(*arguments: Attributes.args, **attributes: Attributes.kwargs) -> Class:
        network: Class = row(*arguments, **attributes)
        return network

    signature: Any = inspect.signature(row).replace(return_annotation=parent)
    create.__name__ = create.__qualname__ = name
    create.__signature__ = signature  # type: ignore[attr-defined]
    create.__doc__ = DOCSTRING.format(
        title=name.replace("ResNet", "ResNet-"),
        source=source,
        parent=parent.__name__,
        name=name,
        stages=len(signature.parameters["depths"].default),
    )
    return create


IMAGENET = "He et al. 2016, table 1"
ResNet18 = _named("ResNet18", ResNet, IMAGENET)
ResNet34 = _named("ResNet34", ResNet, IMAGENET)
ResNet50 = _named("ResNet50", ResNet, IMAGENET)
ResNet101 = _named("ResNet101", ResNet, IMAGENET)
ResNet152 = _named("ResNet152", ResNet, IMAGENET)
ResNet200 = _named("ResNet200", ResNet, "He et al. 2016, Identity mappings, section 5")

CIFAR = "for CIFAR; He et al. 2016, section 4.2"
ResNet20 = _named("ResNet20", ResNet, CIFAR)
ResNet32 = _named("ResNet32", ResNet, CIFAR)
ResNet44 = _named("ResNet44", ResNet, CIFAR)
ResNet56 = _named("ResNet56", ResNet, CIFAR)
ResNet110 = _named("ResNet110", ResNet, CIFAR)
ResNet1202 = _named("ResNet1202", ResNet, CIFAR)
