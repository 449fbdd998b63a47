"""Folders in the form of the Hugging Face hub's repositories for timm."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flaxres.data.preprocess import Preprocess
from flaxres.errors import InputError
from flaxres.models.network import Network
from flaxres.models.registry import MODELS, TIMM
from flaxres.models.resnet9 import ResNet9
from flaxres.paths import completed, expanded
from flaxres.weights.names import leaves, torch_name
from flaxres.weights.transfer import classifier, save_weights, template

CONFIG, WEIGHTS, README = "config.json", "model.safetensors", "README.md"
# Attributes of networks by the names of timm's arguments.
TIMM_ARGUMENTS = {
    "in_chans": "in_channels",
    "output_stride": "output_stride",
    "img_size": "image_size",
}
# timm has no usual value of these outside of its own weights.
ALWAYS_STATED = ("image_size",)
# An initial value, but for None, which leaves parameters out.
INITIAL = "layer_scale"
# A network that timm does not have may be of any size.
OWN_ARGUMENTS = {name: name for name in ("depths", "widths", "stem_width")}

CARD = """\
---
pipeline_tag: image-classification
library_name: {library}
tags:
- image-classification
{tags}{license}---

# {architecture}

{about}

- Input: {size}x{size} pixels. {resized} resized to {resize} ({interpolation}), and the centre is
  cropped. Mean {mean} and standard deviation {std} of the channels in [0, 1].
- Classes: {outputs}. {classes}

```python
import flaxres

model, variables, preprocess = flaxres.load_pretrained("PATH OR OWNER/NAME")
logits = model.apply(variables, preprocess("photo.jpg"))
```
"""
SEVERAL = """

An image has any number of the classes: the probability of each is the sigmoid of its logit.
"""
CARD_IN_TIMM = """
```python
import timm

model = timm.create_model("local-dir:PATH", pretrained=True)  # or "hf-hub:OWNER/NAME"
```
"""


def save_pretrained(
    folder: str | pathlib.Path,
    model: Network,
    variables: Mapping[str, Any],
    preprocess: Preprocess | None = None,
    classes: Sequence[str] = (),
    *,
    about: str = "An image classifier, written by flaxres.",
    license: str = "",
    multi_label: bool = False,
) -> None:
    """Writes a network into a folder that `load_pretrained` and timm load.

    The files are `model.safetensors`, `config.json` in timm's form, and a model card. timm loads
    the folder by `timm.create_model("local-dir:FOLDER", pretrained=True)`, if it has the
    architecture; it has none of the CIFAR networks. The folder can be uploaded to the hub as it is.

    Args:
      folder: the folder; it is created. Its files of these names are replaced at the end.
      model: the network; apart from the attributes that all networks have, `output_stride`, and
        the depths and widths of a `ResNet9`, it must be one of `flaxres.list_models()`.
      variables: `{"params": ..., "batch_stats": ...}`.
      preprocess: preprocessing of its images; None is `Preprocess()`.
      classes: names of its classes in label order; () leaves them out.
      about: paragraphs for the model card, in Markdown.
      license: identifier of the weights' licence for the hub, e.g. `apache-2.0`.
      multi_label: images have any number of labels: the probability of a class is the sigmoid of
        its logit. The model card says so too.

    Raises:
      InputError: the network has no name in `list_models()`, there are not as many `classes` as
        outputs, or the folder can't be written.

    Examples:
      >>> import flaxres, jax, tempfile
      >>> model = flaxres.create_model("test_resnet", num_classes=2)
      >>> variables = jax.jit(model.init)(jax.random.key(0), jax.numpy.zeros((1, 32, 32, 3)))
      >>> folder = tempfile.mkdtemp()
      >>> flaxres.save_pretrained(folder, model, variables, classes=("cat", "dog"))
      >>> model, variables, preprocess = flaxres.load_pretrained(folder)
      >>> model.num_classes, preprocess.classes
      (2, ('cat', 'dog'))
    """
    preprocess = preprocess or Preprocess()
    settings = config(model, preprocess, classes)
    about += multi_label * SEVERAL
    card = _card(settings["architecture"], model.num_classes, preprocess, classes, about, license)
    try:
        with completed(expanded(folder)) as part:
            path = part / WEIGHTS
            save_weights(path, variables, model, preprocess, classes, multi_label=multi_label)
            text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
            (part / CONFIG).write_text(text, encoding="utf-8")
            (part / README).write_text(card, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"folder {str(folder)!r} can't be written ({error.strerror}): give another folder"
        ) from error


def _card(
    name: str,
    outputs: int,
    preprocess: Preprocess,
    classes: Sequence[str],
    about: str,
    license: str,
) -> str:
    """Returns the model card."""
    library, tags = ("timm", "- timm\n- flaxres\n") if in_timm(name) else ("flaxres", "- flaxres\n")
    return (CARD + CARD_IN_TIMM * in_timm(name)).format(
        architecture=name,
        library=library,
        tags=tags,
        about=about,
        license=f"license: {license}\n" if license else "",
        outputs=outputs,
        classes=", ".join(classes),
        resized="Both sides are" if preprocess.squash else "The short side is",
        **dataclasses.asdict(preprocess),
    )


def config(model: Network, preprocess: Preprocess, classes: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the content of config.json, in timm's form.

    Args:
      model, preprocess, classes: see `save_pretrained`.

    Raises:
      InputError: the network has no name in `list_models()`.
    """
    name = architecture(model)
    usual = MODELS[name]()
    first, head = _ends(model)
    pretrained = {
        "custom_load": False,
        "input_size": [model.in_channels, preprocess.size, preprocess.size],
        "interpolation": preprocess.interpolation,
        "crop_pct": _crop_share(preprocess.size, preprocess.resize),
        "crop_mode": "squash" if preprocess.squash else "center",
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "num_classes": model.num_classes,
        "first_conv": first,
        "classifier": head,
    }
    arguments = {
        theirs: getattr(model, ours)
        for theirs, ours in attributes_by_argument(name).items()
        if getattr(model, ours, None) != getattr(usual, ours, None)
        or (ours in ALWAYS_STATED and hasattr(model, ours))
    }
    return {
        "architecture": name,
        "num_classes": model.num_classes,
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": pretrained,
        **({"label_names": list(classes)} if classes else {}),
    }


def in_timm(name: str) -> bool:
    """Returns whether timm has a network of this name, of those that flaxres has."""
    return name in TIMM


def attributes_by_argument(name: str) -> dict[str, str]:
    """Returns the attributes that config.json may state for an architecture, by its key there."""
    return TIMM_ARGUMENTS | (OWN_ARGUMENTS if MODELS[name].func is ResNet9 else {})


def architecture(model: Network) -> str:
    """Returns the name of a network in `list_models()`.

    Attributes that config.json can state may differ, as may those that every network has.

    Raises:
      InputError: there is none; the message names what differs from the nearest one.

    Examples:
      >>> import flaxres
      >>> architecture(flaxres.ResNet50(num_classes=7, dtype="bfloat16"))
      'resnet50'
    """
    common = {field.name for field in dataclasses.fields(Network)}
    names = [field.name for field in dataclasses.fields(model) if field.name not in common]
    nearest: tuple[str, list[str]] = ("", names)
    for name, row in MODELS.items():
        if row.func is not type(model):
            continue
        other, free = row(), set(attributes_by_argument(name).values())
        differing = [at for at in names if getattr(other, at) != getattr(model, at)]
        differing = [at for at in differing if at not in free]
        if None not in (getattr(model, INITIAL, None), getattr(other, INITIAL, None)):
            differing = [at for at in differing if at != INITIAL]
        if not differing:
            return name
        if len(differing) < len(nearest[1]):
            nearest = name, differing
    name, differing = nearest
    reason = f"; it differs from {name} in {', '.join(differing)}" if name else ""
    raise InputError(
        f"this {type(model).__name__} is none of flaxres.list_models(){reason}: save it with "
        "save_weights, whose files hold every attribute"
    )


def _ends(model: Network) -> tuple[str, str]:
    """Returns PyTorch's names of the first convolution and of the head, '' without a head."""
    stems = ("conv1.", "stem.", "features.conv0.", "layer0.")
    names = {torch_name(path): len(leaf.shape) for path, leaf in leaves(template(model))}
    first = min(name for name, rank in names.items() if rank == 4 and name.startswith(stems))
    return first.removesuffix(".weight"), classifier(names)


def _crop_share(size: int, resize: int) -> float:
    """Returns the share `crop_pct` with which timm resizes to `resize`: floor(size / share)."""
    share = size / resize
    return share if math.floor(size / share) == resize else size / (resize + 0.5)
