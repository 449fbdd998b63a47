"""Pretrained weights from the Hugging Face hub, by timm's tags.

The tag `resnet50.a1_in1k` stands for the repository `timm/resnet50.a1_in1k`;
`flaxres.weights.tags` has all of them.
"""

import dataclasses
import json
import math
import pathlib
from typing import Any

from flaxres.data import digests
from flaxres.data.augment import IMAGENET_MEAN, IMAGENET_STD
from flaxres.data.preprocess import Preprocess
from flaxres.errors import InputError, unknown
from flaxres.models.network import Network
from flaxres.models.registry import MODELS, create_model
from flaxres.weights.files import read
from flaxres.weights.tags import pretrained_info
from flaxres.weights.transfer import variables_from_torch

RESOLUTIONS = ("input", "test")


@dataclasses.dataclass(frozen=True)
class PretrainedPreprocess(Preprocess):
    """The preprocessing of a hub tag, and the origin of its weights.

    It also has the attributes of `Preprocess`.

    Attributes:
      repository: on the hub, `owner/name`.
      revision: commit of the repository.
      sha256: digest of the weight file.
      classes: names of the classes if the hub gives them, else ().
    """

    repository: str = ""
    revision: str = ""
    sha256: str = ""
    classes: tuple[str, ...] = ()


def load_pretrained(
    tag: str,
    *,
    num_classes: int | None = None,
    revision: str | None = None,
    cache_dir: str | None = None,
    resolution: str = "input",
    **attributes: Any,
) -> tuple[Network, dict[str, Any], PretrainedPreprocess]:
    """Creates a network with weights from the hub.

    Files are kept in the hub's cache; once they are there, no network connection is needed.

    Args:
      tag: a timm tag such as `resnet50.a1_in1k`; an architecture such as `resnet50`, which stands
        for timm's default tag; torchvision's name, such as `ResNet50_Weights.IMAGENET1K_V2`; or
        `owner/name` of a hub repository in timm's form.
      num_classes: number of classes; another than the weights' re-initialises the head, 0 drops
        it.
      revision: branch, tag or commit of the repository.
      cache_dir: folder in place of the hub's usual cache.
      resolution: 'input' takes the size and the crop that the weights were trained for; 'test'
        those that timm recommends for evaluation, often a larger size and less cropping.
      **attributes: for `create_model`. Another `in_channels` adapts the first convolution.

    Returns:
      `(model, variables, preprocess)`. The last turns images into the network's input.

    Raises:
      InputError: the tag is unknown (the message names the nearest ones), the repository is
        neither on the hub nor in the cache, flaxres has no such architecture, or the files don't
        fit it.

    Examples:
      >>> load_pretrained("resnet50.a1_in22k")
      Traceback (most recent call last):
      flaxres.errors.InputError: unknown pretrained tag 'resnet50.a1_in22k': did you mean ...
    """
    if resolution not in RESOLUTIONS:
        raise unknown("resolution", resolution, RESOLUTIONS)
    repository = _repository(tag)
    name, trained_classes, preset, labels = _read_settings(
        repository, fetch(repository, "config.json", revision, cache_dir), resolution
    )
    if name not in MODELS:
        raise unknown(f"architecture of {repository}", name, MODELS)
    weights_path = fetch(repository, "model.safetensors", revision, cache_dir)
    num_classes = trained_classes if num_classes is None else num_classes
    model = create_model(name, num_classes=num_classes, **attributes)
    weights, _ = read(weights_path)
    kept = {name: value for name, value in weights.items() if num_classes or not _in_head(name)}
    variables = variables_from_torch(kept, model, adapt=True, source=f"weights of {repository!r}")
    preprocess = PretrainedPreprocess(
        **dataclasses.asdict(preset),
        repository=repository,
        revision=weights_path.parent.name,
        sha256=digests.file_digest(weights_path),
        classes=labels,
    )
    return model, variables, preprocess


def _in_head(name: str) -> bool:
    return name.startswith(("fc.", "head.", "classifier."))


def _repository(tag: str) -> str:
    """Returns the repository that a tag or another name of weights stands for."""
    name = tag.removeprefix("hf-hub:").removeprefix("hf_hub:")
    return name if "/" in name else pretrained_info(name).repository


def _read_settings(
    repository: str, path: pathlib.Path, resolution: str
) -> tuple[str, int, Preprocess, tuple[str, ...]]:
    """Returns the architecture, number of classes, preprocessing and labels of a config.json."""
    try:
        settings = json.loads(path.read_text())
        pretrained = settings.get("pretrained_cfg", settings)
        name, preset = settings["architecture"], preprocessing(pretrained, resolution)
        classes = int(pretrained.get("num_classes", settings.get("num_classes", 1000)))
        labels = tuple(settings.get("label_names") or pretrained.get("label_names") or ())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"config.json of {repository!r} is not in timm's form "
            f"({type(error).__name__}: {error}): give another tag"
        ) from error
    return name, classes, preset, labels


def preprocessing(settings: dict[str, Any], resolution: str = "input") -> Preprocess:
    """Returns the resizing, crop and normalisation that timm evaluates a weight with.

    Args:
      settings: timm's `pretrained_cfg`.
      resolution: 'input', or 'test' for the size and the crop of evaluation where they differ.

    Raises:
      ValueError: the interpolation is neither bilinear nor bicubic, the crop is not the centre of
        a square, or a value is no number.

    Examples:
      >>> preset = preprocessing({"input_size": (3, 96, 96), "crop_pct": 0.95})
      >>> preset.size, preset.resize, preset.interpolation
      (96, 101, 'bicubic')
    """
    # timm leaves out of a config.json what it does not set, and writes null for some of it.
    settings = {key: value for key, value in settings.items() if value is not None}
    if resolution == "test":
        tested = ("input_size", "crop_pct")
        settings |= {key: settings[f"test_{key}"] for key in tested if f"test_{key}" in settings}
    height, size = map(int, settings.get("input_size", (3, 224, 224))[-2:])
    if height != size:
        raise ValueError(f"input_size of {height}x{size} pixels, which is no square")
    if (crop_mode := settings.get("crop_mode", "center")) != "center":
        raise ValueError(f"crop_mode {crop_mode!r}")
    interpolation = settings.get("interpolation", "bicubic")
    if interpolation not in ("bilinear", "bicubic"):
        raise ValueError(f"interpolation {interpolation!r}")
    mean, std = (
        tuple(map(float, settings.get(key, default)))
        for key, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD))
    )
    resize = math.floor(size / float(settings.get("crop_pct", 0.875)))
    return Preprocess(size, resize, interpolation, mean, std)


def fetch(repository: str, file: str, revision: str | None, cache_dir: str | None) -> pathlib.Path:
    """Returns the path of a hub repository's file, downloaded if the cache does not have it.

    Raises:
      InputError: there is no such file, or the hub can't be reached.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        path = huggingface_hub.hf_hub_download(
            repository, file, revision=revision, cache_dir=cache_dir
        )
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"{repository!r} is not in the hub's cache and the hub can't be reached: load it once "
            "with a network connection"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{file} of {repository!r} can't be loaded from the hub ({reason}): check the tag"
        ) from error
    return pathlib.Path(path)
