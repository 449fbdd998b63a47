"""Folders and repositories of KerasHub that hold a ResNet."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flaxres.data.preprocess import Preprocess
from flaxres.errors import InputError
from flaxres.models.network import Network
from flaxres.models.resnet import ResNet
from flaxres.models.resnetv2 import ResNetV2
from flaxres.weights.files import optional
from flaxres.weights.keras import in_torchs_form, layers_of
from flaxres.weights.names import Arrays

WEIGHTS, TASK = "model.weights.h5", "task.weights.h5"


def is_hubs(settings: Any) -> bool:
    """Returns whether a config.json is one of KerasHub."""
    return isinstance(settings, Mapping) and str(settings.get("module")).startswith("keras_hub.")


def read(
    settings: Mapping[str, Any],
    file: Callable[[str], pathlib.Path],
    origin: str,
    num_classes: int | None,
) -> tuple[Network, Arrays, Preprocess]:
    """Reads a folder or repository of KerasHub that holds a ResNet.

    Args:
      settings: its config.json.
      file: returns the path of another file in it.
      origin: of the folder, for error messages.
      num_classes: of the network; None is the number of the weights.

    Returns:
      The network, a state dictionary by timm's names, and the preprocessing. The last is the usual
      one of ImageNet for a folder without an image converter.

    Raises:
      InputError: the folder holds another network, lacks a file, or a file can't be read.
    """
    kind = str(settings.get("class_name"))
    if kind != "ResNetBackbone":
        raise InputError(f"{origin!r} holds KerasHub's {kind}: flaxres reads its ResNetBackbone")
    layers, classes = layers_of(file(WEIGHTS)), 0
    # metadata.json names the tasks of a class, and not those of the folder.
    if (place := optional(file, "task.json")) is not None:
        task = _json(place)["config"]
        if task.get("pooling", "avg") != "avg":
            raise InputError(
                f"{origin!r} pools by {task['pooling']!r}: the rule is 'avg'; load it with "
                "num_classes=0 in KerasHub and save its backbone"
            )
        head = layers_of(file(TASK))["predictions"]
        layers["predictions"], classes = head, head["bias"].size
    place = optional(file, "image_converter.json")
    preprocess = Preprocess() if place is None else converter(_json(place)["config"])
    classes = classes if num_classes is None else num_classes
    network = backbone(settings["config"], origin, classes)
    arrays = in_torchs_form(layers, origin)
    return network, arrays, preprocess


def _json(path: pathlib.Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def backbone(config: Mapping[str, Any], origin: str, num_classes: int) -> Network:
    """Returns the network of a KerasHub ResNetBackbone's config.

    Raises:
      InputError: no network of flaxres computes its function.

    Examples:
      >>> model = backbone(
      ...     {
      ...         "input_conv_filters": [64],
      ...         "input_conv_kernel_sizes": [7],
      ...         "stackwise_num_filters": [64, 128],
      ...         "stackwise_num_blocks": [2, 2],
      ...         "stackwise_num_strides": [1, 2],
      ...         "block_type": "basic_block",
      ...     },
      ...     "folder",
      ...     10,
      ... )
      >>> model.depths, model.block
      ((2, 2), 'basic')
    """
    kind = str(config["block_type"])
    block, vd = kind.split("_")[0], kind.endswith("_vd")
    widths, depths = (
        tuple(map(int, config[f"stackwise_num_{name}"])) for name in ("filters", "blocks")
    )
    stem, sizes = tuple(config["input_conv_filters"]), tuple(config["input_conv_kernel_sizes"])
    strides = list(config["stackwise_num_strides"])
    single = sizes == (7,)
    deep = sizes == (3, 3, 3) and stem[1:] == (stem[0], 2 * stem[0])
    preactivated = bool(config.get("use_pre_activation"))
    usual = strides == [1, *([2] * (len(depths) - 1))]
    # The first basic block of a vd has a projection, though it changes no shape.
    odd = (vd and block == "basic") or (preactivated and (vd or deep))
    if odd or not usual or not (single or deep):
        raise InputError(
            f"{origin!r} holds a ResNetBackbone of {kind}, input convolutions {list(stem)} and "
            f"strides {strides}: no network of flaxres computes that"
        )
    common: dict[str, Any] = {"depths": depths, "block": block, "num_classes": num_classes}
    if preactivated:
        factor = 4 if block == "bottleneck" else 1
        outer = tuple(factor * width for width in widths)
        return ResNetV2(widths=outer, stem_width=stem[0], **common)
    stems: dict[str, Any] = {"stem": "deep" if deep else "standard", "stem_width": stem[0]}
    return ResNet(widths=widths, shortcut="average" if vd else "projection", **stems, **common)


def converter(config: Mapping[str, Any]) -> Preprocess:
    """Returns the preprocessing of a KerasHub image converter, `x * scale + offset`.

    Examples:
      >>> settings = {"image_size": [224, 224], "scale": 1 / 127.5, "offset": -1.0}
      >>> converter(settings).mean, converter(settings).std
      ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    """
    height, width = config.get("image_size") or (224, 224)
    if height != width:
        raise ValueError(f"image_size of {height}x{width} pixels, which is no square")
    scale = np.broadcast_to(np.asarray(config.get("scale") or 1.0, np.float64), 3)
    offset = np.broadcast_to(np.asarray(config.get("offset") or 0.0, np.float64), 3)
    if config.get("pad_to_aspect_ratio"):
        raise ValueError("pad_to_aspect_ratio")
    interpolation = str(config.get("interpolation", "bilinear"))
    if interpolation not in ("bilinear", "bicubic"):
        raise ValueError(f"interpolation {interpolation!r}")
    std = 1 / (255 * scale)
    return Preprocess(
        int(height),
        int(height),
        interpolation,  # type: ignore[arg-type]
        tuple(round(float(value), 7) for value in -offset * std),
        tuple(round(float(value), 7) for value in std),
        squash=not config.get("crop_to_aspect_ratio", True),
    )
