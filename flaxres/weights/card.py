"""The metadata of a file of weights: its network, preprocessing and classes."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from flaxres.errors import InputError
from flaxres.models.network import Network
from flaxres.models.registry import MODELS

_classes: set[Any] = {row.func for row in MODELS.values()}
NETWORKS: dict[str, type[Network]] = {network.__name__: network for network in _classes}
NETWORK, PREPROCESS, CLASSES = "flaxres.network", "flaxres.preprocess", "flaxres.classes"
MULTI_LABEL = "flaxres.multi_label"
V1 = "flaxres.v1"  # in files of older versions
PREPROCESSING = ("size", "resize", "interpolation", "mean", "std", "exif", "squash")
# Attributes of every network that its function at inference depends on.
COMMON = ("num_classes", "in_channels", "dtype", "param_dtype")
# A dilated network may well be meant to start from weights of the usual one.
DILATION = "output_stride"


@dataclasses.dataclass(frozen=True)
class Card:
    """The content of a file's metadata; each part may be missing.

    Attributes:
      network: the network.
      stated: the attributes of the network that change its function and none of its leaves.
      preprocess: the attributes of its `flaxres.data.preprocess.Preprocess`.
      classes: names of its classes in label order.
      multi_label: each class is likely or not by itself; see `data.multi_label`.
    """

    network: Network | None = None
    stated: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocess: dict[str, Any] | None = None
    classes: tuple[str, ...] = ()
    multi_label: bool = False


def to_metadata(
    model: Network, preprocess: Any = None, classes: Sequence[str] = (), multi_label: bool = False
) -> dict[str, str]:
    """Returns the metadata of a file of weights.

    Args:
      model: the network; one of no class of flaxres leaves nothing about itself.
      preprocess: its `Preprocess`, or None.
      classes: names of its classes in label order.
      multi_label: each class is likely or not by itself.
    """
    content: dict[str, Any] = {}
    if (network := _class(model)) is not None:
        own = [name for name in _fields(network) if name not in _fields(Network)]
        attributes = {name: getattr(model, name) for name in (*COMMON, *own)}
        attributes |= {name: jnp.dtype(attributes[name]).name for name in ("dtype", "param_dtype")}
        content[NETWORK] = {"class": network.__name__, **attributes}
    if preprocess is not None:
        content[PREPROCESS] = {name: getattr(preprocess, name) for name in PREPROCESSING}
    metadata = {key: json.dumps(value) for key, value in content.items()}
    if classes:
        metadata[CLASSES] = json.dumps(list(classes), ensure_ascii=False)
    if multi_label:
        metadata[MULTI_LABEL] = json.dumps(multi_label)
    return {"format": "pt", **metadata}


def from_metadata(metadata: Mapping[str, str], path: str) -> Card:
    """Returns what the metadata of a file say.

    Args:
      metadata: of the safetensors file.
      path: of the file, for error messages.

    Raises:
      InputError: the metadata were changed, or written by a newer flaxres.

    Examples:
      >>> import flaxres
      >>> card = from_metadata(to_metadata(flaxres.ResNet18(num_classes=2)), "weights")
      >>> card.network.depths, card.network.num_classes, card.classes
      ((2, 2, 2, 2), 2, ())
    """
    try:
        network = _network(json.loads(metadata[NETWORK])) if NETWORK in metadata else None
        return Card(
            network,
            _stated(network, metadata),
            _preprocess(json.loads(metadata[PREPROCESS])) if PREPROCESS in metadata else None,
            tuple(map(str, json.loads(metadata.get(CLASSES, "[]")))),
            bool(json.loads(metadata.get(MULTI_LABEL, "false"))),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"weights {path!r}: their metadata can't be read ({type(error).__name__}: {error}): "
            "a newer flaxres wrote them, or they were changed; convert them again"
        ) from error


def require_same_function(card: Card, model: Network, path: str, adapt: bool) -> None:
    """Compares the attributes that change a network's function and none of its leaves.

    Args:
      card: of the file.
      model: the network that the weights are for.
      path: of the file, for error messages.
      adapt: accept another `output_stride`.

    Raises:
      InputError: they differ in one; the message names it with both values.
    """
    for name, stated in card.stated.items():
        wanted = getattr(model, name, stated)
        if stated == wanted or (adapt and name == DILATION):
            continue
        hint = ", or read them with adapt=True" if name == DILATION else ""
        raise InputError(
            f"weights {path!r} are of a network with {name}={stated!r}, the model has "
            f"{name}={wanted!r}: create it with {name}={stated!r}{hint}"
        )


def _class(model: Network) -> type[Network] | None:
    """Returns the class of flaxres that a network is of or derives from, None without one."""
    return next((one for one in type(model).__mro__ if one in NETWORKS.values()), None)


def _stated(network: Network | None, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Returns the attributes that no leaf shows; older files state only `v1`."""
    if network is None:
        return {"v1": metadata[V1] == "True"} if V1 in metadata else {}
    return {name: getattr(network, name) for name in getattr(network, "BEYOND_LEAVES", ())}


def _fields(network: type[Network]) -> list[str]:
    hidden = ("parent", "name")
    return [field.name for field in dataclasses.fields(network) if field.name not in hidden]


def _network(attributes: dict[str, Any]) -> Network:
    network = NETWORKS[attributes.pop("class")]
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in attributes.items()
    }
    return network(**values | {name: jnp.dtype(values[name]) for name in ("dtype", "param_dtype")})


def _preprocess(attributes: dict[str, Any]) -> dict[str, Any]:
    attributes = {"squash": False} | attributes  # files of older versions lack it
    values = {name: attributes[name] for name in PREPROCESSING}
    return values | {name: tuple(map(float, values[name])) for name in ("mean", "std")}
