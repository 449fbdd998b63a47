"""Folders and repositories of Hugging Face's transformers that hold a ResNet."""

import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from flaxres.data.preprocess import Preprocess
from flaxres.errors import InputError
from flaxres.models.resnet import ResNet
from flaxres.weights.files import optional

WEIGHTS = "model.safetensors"
# Pillow's numbers of filters.
FILTERS = {2: "bilinear", 3: "bicubic"}


def is_transformers(settings: Any) -> bool:
    """Returns whether a config.json is one of transformers."""
    return isinstance(settings, Mapping) and "model_type" in settings


def network(config: Mapping[str, Any], origin: str, num_classes: int) -> ResNet:
    """Returns the network of a config.json.

    Args:
      config: content of the file.
      origin: of the folder, for error messages.
      num_classes: of the network.

    Raises:
      InputError: no network of flaxres computes its function.

    Examples:
      >>> model = network({"model_type": "resnet", "depths": [2, 2, 2, 2]}, "folder", 10)
      >>> model.depths, model.widths, model.num_classes
      ((2, 2, 2, 2), (64, 128, 256, 512), 10)
    """
    if (kind := config["model_type"]) != "resnet":
        raise InputError(
            f"{origin!r} holds a {kind} of transformers: flaxres reads its resnet; other networks "
            "by timm's tags, see `flaxres models --tags`"
        )
    block = config.get("layer_type", "bottleneck")
    sizes = config.get("hidden_sizes", [256, 512, 1024, 2048])
    other = {
        name: config[name]
        for name, usual in (("hidden_act", "relu"), ("downsample_in_first_stage", False))
        if config.get(name, usual) != usual
    }
    if other:
        raise InputError(f"{origin!r} holds a resnet with {other}: flaxres has no such network")
    return ResNet(
        depths=tuple(config.get("depths", [3, 4, 6, 3])),
        block=block,
        widths=tuple(size // 4 if block == "bottleneck" else size for size in sizes),
        stem_width=config.get("embedding_size", 64),
        v1=block == "bottleneck" and bool(config.get("downsample_in_bottleneck", False)),
        in_channels=config.get("num_channels", 3),
        num_classes=num_classes,
    )


def classes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of the classes in the order of their labels, () if there are none."""
    labels = config.get("id2label") or {}
    return tuple(labels[str(label)] for label in range(len(labels)))


def preprocessing(file: Callable[[str], pathlib.Path]) -> Preprocess:
    """Returns the preprocessing of a ConvNextImageProcessor, that of transformers' ResNets.

    Args:
      file: returns the path of a file of the folder. Without a `preprocessor_config.json` the
        result is the usual preprocessing of ImageNet.

    Raises:
      ValueError: the file states another processing.
    """
    if (place := optional(file, "preprocessor_config.json")) is None:
        return Preprocess()
    settings = json.loads(place.read_text(encoding="utf-8"))
    kind = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "")
    if kind and not kind.startswith("ConvNext"):
        raise ValueError(f"preprocessor_config.json is of a {kind}, no ConvNextImageProcessor")
    for name in ("do_resize", "do_rescale", "do_normalize"):
        if not settings.get(name, True):
            raise ValueError(f"preprocessor_config.json has {name}={settings[name]!r}")
    if not math.isclose(settings.get("rescale_factor", 1 / 255), 1 / 255):
        raise ValueError(f"rescale_factor={settings['rescale_factor']!r}")
    size = settings.get("size", 384)
    size = int(size["shortest_edge"] if isinstance(size, Mapping) else size)
    if (filter_ := settings.get("resample", 2)) not in FILTERS:
        raise ValueError(f"resample {filter_!r}")
    # From 384 pixels on it crops nothing.
    resize = int(size / float(settings.get("crop_pct") or 0.875)) if size < 384 else size
    half = (0.5, 0.5, 0.5)
    return Preprocess(
        size,
        resize,
        FILTERS[filter_],  # type: ignore[arg-type]
        tuple(map(float, settings.get("image_mean") or half)),
        tuple(map(float, settings.get("image_std") or half)),
        squash=size >= 384,
    )
