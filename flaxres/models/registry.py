"""The table of names: timm's, and for CIFAR the paper's."""

import fnmatch
import functools
import inspect
from typing import Any

from flax import linen as nn

from flaxres.errors import InputError, unknown
from flaxres.models import resnet

MODELS: dict[str, functools.partial[Any]] = {
    "resnet18": resnet.ResNet18,
    "resnet34": resnet.ResNet34,
    "resnet50": resnet.ResNet50,
    "resnet101": resnet.ResNet101,
    "resnet152": resnet.ResNet152,
    "resnet200": resnet.ResNet200,
    "resnet20": resnet.ResNet20,
    "resnet32": resnet.ResNet32,
    "resnet44": resnet.ResNet44,
    "resnet56": resnet.ResNet56,
    "resnet110": resnet.ResNet110,
}


def list_models(pattern: str = "*") -> list[str]:
    """Names that match a shell pattern such as `resnet*d`, in natural order (resnet50 before resnet101)."""
    names = fnmatch.filter(MODELS, pattern)
    return sorted(names, key=lambda name: [(len(part), part) for part in name.split("_")])


def create_model(name: str, **attributes: Any) -> nn.Module:
    """The Linen module called `name`, with `attributes` of its class changed, e.g. `create_model("resnet50", num_classes=10)`.

    Raises InputError for an unknown name (with the near ones) or attribute.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    fields = set(inspect.signature(MODELS[name].func).parameters) - {"parent", "name"}
    for attribute in attributes:
        if attribute not in fields:
            raise unknown(f"attribute of {name}", attribute, fields)
    try:
        return MODELS[name](**attributes)
    except TypeError as error:
        raise InputError(f"{name}: {error}") from error
