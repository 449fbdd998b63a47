"""Pretrained weights from the Hugging Face hub, by timm's tags, and from folders in its form.

The tag `resnet50.a1_in1k` stands for the repository `timm/resnet50.a1_in1k`, the tag
`resnet20.flaxres_digits` for a folder in the package; `flaxres.weights.tags` has all of them.
`flaxres.weights.hub_folder` writes folders.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any

from flaxres.data import digests
from flaxres.data.augment import IMAGENET_MEAN, IMAGENET_STD
from flaxres.data.preprocess import Preprocess
from flaxres.errors import InputError, unknown
from flaxres.models.network import Network
from flaxres.models.registry import MODELS, create_model
from flaxres.paths import expanded
from flaxres.weights import keras_hub, transformers_hub
from flaxres.weights.card import Card, from_metadata, require_same_function
from flaxres.weights.files import read
from flaxres.weights.hub_folder import ALWAYS_STATED, CONFIG, WEIGHTS, attributes_by_argument
from flaxres.weights.located import content_of, downloaded, is_address, located
from flaxres.weights.tags import Pretrained, pretrained_info
from flaxres.weights.transfer import (
    classes as trained_classes,
    variables_from_torch,
)

RESOLUTIONS = ("input", "test")
# timm's arguments that the weights and the function at inference don't depend on, or that
# config.json states elsewhere too.
TRAINING_ARGUMENTS = (
    *("num_classes", "drop_rate", "drop_path_rate", "drop_block_rate", "head_init_scale"),
)


@dataclasses.dataclass(frozen=True)
class PretrainedPreprocess(Preprocess):
    """The preprocessing of a hub tag, and the origin of its weights.

    It also has the attributes of `Preprocess`.

    Attributes:
      repository: on the hub, `owner/name`; or the folder.
      revision: commit of the repository, '' for a folder.
      sha256: digest of the weight file.
      classes: names of the classes if the hub gives them, else ().
      multi_label: each class is likely or not by itself; see `flaxres.save_weights`.
    """

    repository: str = ""
    revision: str = ""
    sha256: str = ""
    classes: tuple[str, ...] = ()
    multi_label: bool = False


@dataclasses.dataclass(frozen=True)
class _Settings:
    """The content of a config.json."""

    architecture: str
    num_classes: int
    preprocess: Preprocess
    classes: tuple[str, ...]
    attributes: dict[str, Any]


def load_pretrained(
    tag: str,
    *,
    num_classes: int | None = None,
    revision: str | None = None,
    cache_dir: str | None = None,
    resolution: str = "input",
    **attributes: Any,
) -> tuple[Network, dict[str, Any], PretrainedPreprocess]:
    """Creates a network with weights from the package, the hub, or a folder in the hub's form.

    Files of the hub are kept in its cache; once they are there, no network connection is needed.

    Args:
      tag: a tag of `list_pretrained`, such as timm's `resnet50.a1_in1k`, or
        `resnet20.flaxres_digits`, which comes with the package; an architecture such as `resnet50`,
        which stands for timm's default tag; torchvision's name, such as
        `ResNet50_Weights.IMAGENET1K_V2`;
        `owner/name` of a hub repository in the form of timm, transformers or KerasHub; or a folder
        of theirs or of `save_pretrained`. Where both are possible, `hf-hub:` and `local-dir:` in
        front decide.
      num_classes: number of classes; another than the weights' re-initialises the head, 0 drops
        it.
      revision: branch, tag or commit of the repository.
      cache_dir: folder in place of the hub's usual cache, and of the user's for addresses.
      resolution: 'input' takes the size and the crop that the weights were trained for; 'test'
        those that timm recommends for evaluation, often a larger size and less cropping. Folders
        of transformers and KerasHub have one size.
      **attributes: for `create_model`. Another `in_channels` adapts the first convolution.

    Returns:
      `(model, variables, preprocess)`. The last turns images into the network's input.

    Raises:
      InputError: the tag is unknown (the message names the nearest ones), the repository is
        neither on the hub nor in the cache, the folder lacks a file, flaxres has no such
        architecture, or the files don't fit it.

    Examples:
      >>> model, variables, preprocess = load_pretrained("resnet20.flaxres_digits")
      >>> preprocess.size, preprocess.classes[:3]
      (8, ('0', '1', '2'))
      >>> load_pretrained("resnet50.a1_in22k")
      Traceback (most recent call last):
      flaxres.errors.InputError: unknown pretrained tag 'resnet50.a1_in22k': did you mean ...
    """
    if resolution not in RESOLUTIONS:
        raise unknown("resolution", resolution, RESOLUTIONS)
    origin, file = located(tag, revision, cache_dir)
    if file is None:
        settings = _settings_of(pretrained_info(tag), resolution)
        path = downloaded(origin, cache_dir)
    else:
        content = content_of(origin, file(CONFIG))
        if keras_hub.is_hubs(content) or transformers_hub.is_transformers(content):
            return _load_foreign(content, origin, file, num_classes, attributes)
        settings, path = _settings_from(content, origin, resolution), file(WEIGHTS)
    return _loaded(settings, origin, path, num_classes, attributes)


def _loaded(
    settings: _Settings,
    origin: str,
    path: pathlib.Path,
    num_classes: int | None,
    attributes: dict[str, Any],
) -> tuple[Network, dict[str, Any], PretrainedPreprocess]:
    """Returns the result of `load_pretrained` for a file of weights in timm's naming."""
    num_classes = settings.num_classes if num_classes is None else num_classes
    attributes = settings.attributes | attributes
    model = create_model(settings.architecture, num_classes=num_classes, **attributes)
    weights, metadata = read(path)
    card = from_metadata(metadata, str(path))
    require_same_function(card, model, str(path), adapt=True)
    found = trained_classes(weights)
    if found and found != settings.num_classes:
        raise InputError(
            f"config.json of {origin!r} states {settings.num_classes} classes, and the head of its "
            f"weights has {found}: correct it, or save both again"
        )
    variables = variables_from_torch(weights, model, adapt=True, source=f"weights of {origin!r}")
    return model, variables, _preprocess(settings, card, origin, path, num_classes)


def _preprocess(
    settings: _Settings, card: Card, origin: str, path: pathlib.Path, outputs: int
) -> PretrainedPreprocess:
    """Returns the preprocessing of weights with their origin.

    A head of another number of `outputs` than the weights' has no names of classes.
    """
    local = is_address(origin) or path.parent == expanded(origin)
    preset = dataclasses.asdict(settings.preprocess)
    preset |= {"exif": (card.preprocess or preset)["exif"]}  # timm knows no EXIF
    return PretrainedPreprocess(
        **preset,
        repository=origin,
        revision="" if local else path.parent.name,
        sha256=digests.file_digest(path),
        classes=settings.classes if len(settings.classes) == outputs else (),
        multi_label=card.multi_label,
    )


def _load_foreign(
    settings: Any,
    origin: str,
    file: Callable[[str], pathlib.Path],
    num_classes: int | None,
    attributes: dict[str, Any],
) -> tuple[Network, dict[str, Any], PretrainedPreprocess]:
    """Reads a folder or repository of KerasHub or transformers with the content of its config."""
    classes: tuple[str, ...] = ()
    try:
        if keras_hub.is_hubs(settings):
            path = file(keras_hub.WEIGHTS)
            network, weights, preprocess = keras_hub.read(settings, file, origin, num_classes)
        else:
            path = file(transformers_hub.WEIGHTS)
            weights, _ = read(path)
            number = trained_classes(weights) if num_classes is None else num_classes
            network = transformers_hub.network(settings, origin, number)
            classes = transformers_hub.classes(settings)
            preprocess = transformers_hub.preprocessing(file)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{origin!r} is not in the form of its library ({type(error).__name__}: {error}): "
            "read its weights with load_weights, or save it again there"
        ) from error
    fields = {field.name for field in dataclasses.fields(network)}
    for name in attributes:
        if name not in fields:
            raise unknown(f"attribute of {type(network).__name__}", name, fields)
    model = network.clone(**attributes)
    variables = variables_from_torch(weights, model, adapt=True, source=f"weights of {origin!r}")
    known = _Settings("", model.num_classes, preprocess, classes, {})
    return model, variables, _preprocess(known, Card(), origin, path, model.num_classes)


def _settings_of(row: Pretrained, resolution: str) -> _Settings:
    """Returns the settings of weights without a config.json, from the table."""
    size = 3 * (row.input_size,)
    tested = {"test_input_size": 3 * (row.test_input_size,), "test_crop_pct": row.test_crop_pct}
    preset = preprocessing(dataclasses.asdict(row) | tested | {"input_size": size}, resolution)
    return _Settings(row.architecture, row.num_classes, preset, (), {})


def _settings_from(settings: Any, origin: str, resolution: str) -> _Settings:
    """Returns the settings that the content of a config.json in timm's form states."""
    try:
        pretrained = settings.get("pretrained_cfg", settings)
        if (name := settings["architecture"]) not in MODELS:
            raise unknown(f"architecture of {origin}", name, MODELS)
        return _Settings(
            name,
            int(settings.get("num_classes", pretrained.get("num_classes", 1000))),
            preprocessing(pretrained, resolution),
            tuple(settings.get("label_names") or pretrained.get("label_names") or ()),
            _attributes(name, settings.get("model_args") or {}),
        )
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"config.json of {origin!r} is not in timm's form "
            f"({type(error).__name__}: {error}): give another tag"
        ) from error


def _attributes(architecture: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the attributes of a network that `model_args` of config.json state."""
    ours, attributes = attributes_by_argument(architecture), {}
    for name, value in arguments.items():
        if name in ours:
            attributes[ours[name]] = _attribute(ours[name], value)
        elif name == "ls_init_value" and value is not None:
            continue  # of parameters that the weights have
        elif name not in TRAINING_ARGUMENTS and (name, value) != ("global_pool", "avg"):
            raise ValueError(f"model_args has {name}={value!r}")
    return attributes


def _attribute(name: str, value: Any) -> Any:
    """Returns the value of an attribute that config.json states."""
    if not isinstance(value, list):
        return int(value)
    if name in ALWAYS_STATED:
        if len(set(value)) != 1:
            raise ValueError(f"{name}={value!r}, which is no square")
        return int(value[0])
    return tuple(map(int, value))


def preprocessing(settings: dict[str, Any], resolution: str = "input") -> Preprocess:
    """Returns the resizing, crop and normalisation that timm evaluates a weight with.

    Args:
      settings: timm's `pretrained_cfg`.
      resolution: 'input', or 'test' for the size and the crop of evaluation where they differ.

    Raises:
      ValueError: the interpolation is neither bilinear nor bicubic, `crop_mode` is neither center
        nor squash, the input is no square, or a value is no number.

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
    if (crop_mode := settings.get("crop_mode", "center")) not in ("center", "squash"):
        raise ValueError(f"crop_mode {crop_mode!r}")
    interpolation = settings.get("interpolation", "bicubic")
    if interpolation not in ("bilinear", "bicubic"):
        raise ValueError(f"interpolation {interpolation!r}")
    mean, std = (
        tuple(map(float, settings.get(key, default)))
        for key, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD))
    )
    resize = math.floor(size / float(settings.get("crop_pct", 0.875)))
    return Preprocess(size, resize, interpolation, mean, std, squash=crop_mode == "squash")
