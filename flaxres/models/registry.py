"""The table of model names: timm's, and the papers' names for CIFAR.

Its rows are in `flaxres.models.rows`.
"""

import fnmatch
import inspect
import re
from typing import Any

from flaxres.errors import InputError, unknown
from flaxres.models.network import Network
from flaxres.models.rows import convnexts, descendants, regnets, resnets
from flaxres.models.rows.shapes import Row

# Names that timm has too, with timm's meaning.
TIMM: dict[str, Row] = resnets.TIMM | descendants.ROWS | regnets.ROWS | convnexts.ROWS
# Names that timm lacks.
OWN: dict[str, Row] = resnets.OWN
MODELS: dict[str, Row] = TIMM | OWN


def natural(name: str) -> list[int | str]:
    """Returns the key that sorts names in natural order.

    Examples:
      >>> sorted(["resnet101", "resnet50"], key=natural)
      ['resnet50', 'resnet101']
    """
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names that match a shell pattern, in natural order (resnet50 before resnet101).

    Examples:
      >>> import flaxres
      >>> flaxres.list_models("resnet*c")
      ['resnet50c', 'resnet101c', 'resnet152c']
    """
    return sorted(fnmatch.filter(MODELS, pattern), key=natural)


def create_model(name: str, **attributes: Any) -> Network:
    """Creates the network called `name` with some attributes of its class changed.

    Args:
      name: a name from `list_models`.
      **attributes: fields of the class, e.g. `num_classes`.

    Raises:
      InputError: the name or an attribute is unknown; the message names the nearest ones.

    Examples:
      >>> import flaxres
      >>> flaxres.create_model("resnet50", num_classes=10).depths
      (3, 4, 6, 3)
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    fields = set(inspect.signature(MODELS[name].func).parameters) - {"parent", "name"}
    for attribute in attributes:
        if attribute not in fields:
            raise unknown(f"attribute of {name}", attribute, fields)
    network: Network
    try:
        network = MODELS[name](**attributes)
    except TypeError as error:
        raise InputError(f"{name}: {error}") from error
    return network


def small_images(name: str) -> bool:
    """Returns whether a model is made for CIFAR-10: 32 pixels and ten classes by default."""
    return create_model(name).for_small_images
