"""Pretrained weights by timm's tags, from the Hugging Face hub: `resnet50.a1_in1k` is the repository `timm/resnet50.a1_in1k`."""

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
from flaxres.weights.transfer import variables_from_torch


@dataclasses.dataclass(frozen=True)
class PretrainedPreprocess(Preprocess):
    """The preprocessing of a hub tag, and where its weights came from.

    Attributes:
      repository, revision, sha256: of the file of weights; revision is the commit.
      classes: names of the classes where the hub gives them, else ().
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
    **attributes: Any,
) -> tuple[Network, dict[str, Any], PretrainedPreprocess]:
    """`(model, variables, preprocess)` of a timm tag such as `resnet50.a1_in1k`, or of any hub repository in timm's form (`owner/name`).

    Files are kept in the hub's cache; what is there needs no network. `num_classes` other than the weight's gives a new head (0: none),
    `in_channels` an adapted first convolution; further attributes go to `create_model`.

    Raises InputError for a tag that isn't on the hub nor in the cache, an architecture that flaxres doesn't have, or files that don't fit it.
    """
    repository = tag.removeprefix("hf-hub:").removeprefix("hf_hub:")
    repository = repository if "/" in repository else f"timm/{repository}"
    settings_path = fetch(repository, "config.json", revision, cache_dir)
    try:
        settings = json.loads(settings_path.read_text())
        pretrained = settings.get("pretrained_cfg", settings)
        name, preset = settings["architecture"], preprocessing(pretrained)
        trained_classes = int(pretrained.get("num_classes", settings.get("num_classes", 1000)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"config.json of {repository!r} is not in timm's form ({type(error).__name__}: {error}): give another tag"
        ) from error
    if name not in MODELS:
        raise unknown(f"architecture of {repository}", name, MODELS)
    weights_path = fetch(repository, "model.safetensors", revision, cache_dir)
    model = create_model(
        name, num_classes=trained_classes if num_classes is None else num_classes, **attributes
    )
    weights, _ = read(weights_path)
    if num_classes == 0:
        weights = {
            key: value
            for key, value in weights.items()
            if not key.startswith(("fc.", "head.", "classifier."))
        }
    variables = variables_from_torch(
        weights, model, adapt=True, source=f"weights of {repository!r}"
    )
    names = tuple(settings.get("label_names") or pretrained.get("label_names") or ())
    origin: dict[str, Any] = {
        "repository": repository,
        "revision": weights_path.parent.name,
        "sha256": digests.file_digest(weights_path),
        "classes": names,
    }
    return model, variables, PretrainedPreprocess(**dataclasses.asdict(preset), **origin)


def preprocessing(settings: dict[str, Any]) -> Preprocess:
    """timm's `pretrained_cfg` -> the evaluation's resize, crop and normalisation."""
    size = int(settings.get("input_size", (3, 224, 224))[-1])
    interpolation = settings.get("interpolation", "bicubic")
    if interpolation not in ("bilinear", "bicubic"):
        raise ValueError(f"interpolation {interpolation!r}")
    mean, std = (
        tuple(map(float, settings.get(key, default)))
        for key, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD))
    )
    return Preprocess(
        size, math.floor(size / float(settings.get("crop_pct", 0.875))), interpolation, mean, std
    )


def fetch(repository: str, file: str, revision: str | None, cache_dir: str | None) -> pathlib.Path:
    """A file of a hub repository, from the cache where it is there; raises InputError with the reason otherwise."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return pathlib.Path(
            huggingface_hub.hf_hub_download(
                repository, file, revision=revision, cache_dir=cache_dir
            )
        )
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"{repository!r} is not in the hub's cache and the hub can't be reached: load it once with a network"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise InputError(
            f"{file} of {repository!r} can't be had from the hub ({' '.join(str(error).split())[:200]}): check the tag"
        ) from error
