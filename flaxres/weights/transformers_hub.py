"""Folders and repositories of Hugging Face's transformers that hold a ResNet."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from flaxres.data.preprocess import Preprocess
from flaxres.errors import InputError
from flaxres.models.resnet import ResNet

WEIGHTS = "model.safetensors"
# Pillow's numbers of filters.
FILTERS = {2: "bilinear", 3: "bicubic"}


def is_transformers(settings: Any) -> bool:
    """Returns whether a config.json is one of transformers."""
    return isinstance(settings, Mapping) and "model_type" in settings


def network(config: Mapping[str, Any], origin: str, num_classes: int | None) -> ResNet:
    """Returns the network of a config.json.

    Args:
      config: content of the file.
      origin: of the folder, for error messages.
      num_classes: of the network; None is the number of the weights.

    Raises:
      InputError: no network of flaxres computes its function.

    Examples:
      >>> model = network({"model_type": "resnet", "depths": [2, 2, 2, 2]}, "folder", None)
      >>> model.depths, model.widths, model.num_classes
      ((2, 2, 2, 2), (64, 128, 256, 512), 0)
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
        num_classes=len(classes(config)) if num_classes is None else num_classes,
    )


def classes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of the classes in the order of their labels, none for a backbone."""
    if not any("Classification" in name for name in config.get("architectures") or ()):
        return ()
    labels = config.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})  # transformers' default
    return tuple(labels[str(label)] for label in range(len(labels)))


def preprocessing(file: Callable[[str], pathlib.Path]) -> Preprocess:
    """Returns the preprocessing of a ConvNextImageProcessor, that of transformers' ResNets.

    Args:
      file: returns the path of a file of the folder.

    Raises:
      ValueError: the file states another processing.
    """
    settings = json.loads(file("preprocessor_config.json").read_text(encoding="utf-8"))
    size = settings["size"]
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
