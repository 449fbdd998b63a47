"""The table of pretrained weights: timm's, and those that come with the package.

timm's are the rows of `pretrained.csv`, which `tools/pretrained_table.py` writes. Ours are the
folders of `trained/`, which `tools/results.py` writes. Both are read on first use.
"""

import csv
import dataclasses
import fnmatch
import functools
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

from flaxres.errors import InputError, nearest
from flaxres.models.registry import natural

HERE = pathlib.Path(__file__).parent
TRAINED = HERE / "trained"
# E.g. ResNet50_Weights.IMAGENET1K_V2.
TORCHVISION = re.compile(r"\w+_Weights\.\w+")


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Pretrained weights that timm hosts, or that come with flaxres.

    Attributes:
      tag: name of the weights, `architecture.source`.
      default: whether timm loads them for the bare name of the architecture.
      torchvision: torchvision's name of the same weights, '' if it has none.
      repository: on the Hugging Face hub, `owner/name`; or the address of a file; '' for weights
        that come with flaxres.
      input_size, test_input_size: side of the images in pixels; the second is larger where timm
        recommends it for evaluation.
      crop_pct, test_crop_pct: share of the resized image's side that the crop keeps, at these
        sides.
      crop_mode, interpolation: how timm resizes and crops.
      mean, std: of the channels of images in [0, 1].
      num_classes: outputs of the head; 0 if the weights have none.
      first_conv, classifier: names of the first convolution and the head.
      license: of the weights, '' if timm gives none.
      top1, top5, test_top1, test_top5: accuracy in percent at `input_size` and at
        `test_input_size`, which timm measured on ImageNet, and we on the test images of the
        dataset that the tag names; None if it is not known.
      example: path of a picture that comes with the weights, '' if there is none.

    Examples:
      >>> import flaxres
      >>> info = flaxres.pretrained_info("resnetv2_50x1_bit.goog_in21k")
      >>> info.architecture, info.num_classes, info.classifier
      ('resnetv2_50x1_bit', 21843, 'head.fc')
    """

    tag: str
    default: bool
    torchvision: str
    repository: str
    input_size: int
    test_input_size: int
    crop_pct: float
    test_crop_pct: float
    crop_mode: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    first_conv: str
    classifier: str
    license: str
    top1: float | None
    top5: float | None
    test_top1: float | None
    test_top5: float | None
    example: str = ""

    @property
    def architecture(self) -> str:
        """Name of the network, for `flaxres.create_model`."""
        return self.tag.partition(".")[0]


READERS: dict[str, Callable[[str], Any]] = {
    "default": lambda text: text == "yes",
    **dict.fromkeys(("input_size", "test_input_size", "num_classes"), int),
    **dict.fromkeys(("crop_pct", "test_crop_pct"), float),
    **dict.fromkeys(("mean", "std"), lambda text: tuple(map(float, text.split()))),
    **dict.fromkeys(
        ("top1", "top5", "test_top1", "test_top5"), lambda text: float(text) if text else None
    ),
}


@functools.cache
def table() -> dict[str, Pretrained]:
    """Returns the rows of the table by tag, in natural order."""
    text = (HERE / "pretrained.csv").read_text()
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    rows = [
        Pretrained(**{key: READERS.get(key, str)(text) for key, text in row.items()})
        for row in csv.DictReader(lines)
    ]
    rows += [_trained(folder) for folder in TRAINED.iterdir()]
    return {row.tag: row for row in sorted(rows, key=lambda row: natural(row.tag))}


def _trained(folder: pathlib.Path) -> Pretrained:
    """Returns the row of weights that come with the package."""
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings = content["pretrained_cfg"]
    size, share = settings["input_size"][-1], settings["crop_pct"]
    example = folder / "example.png"
    return Pretrained(
        tag=folder.name,
        default=False,
        torchvision="",
        repository="",
        input_size=size,
        test_input_size=size,
        crop_pct=share,
        test_crop_pct=share,
        crop_mode=settings["crop_mode"],
        interpolation=settings["interpolation"],
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        num_classes=content["num_classes"],
        first_conv=settings["first_conv"],
        classifier=settings["classifier"],
        license=content["license"],
        top1=content["top1"],
        top5=None,
        test_top1=content["top1"],
        test_top5=None,
        example=str(example) if example.exists() else "",
    )


def list_pretrained(pattern: str = "*") -> list[str]:
    """Returns the tags that match a shell pattern, in natural order. Needs no network.

    Args:
      pattern: of the tag or of its architecture.

    Examples:
      >>> import flaxres
      >>> flaxres.list_pretrained("resnet50.a[123]_in1k")
      ['resnet50.a1_in1k', 'resnet50.a2_in1k', 'resnet50.a3_in1k']
      >>> flaxres.list_pretrained("densenet121")
      ['densenet121.ra_in1k', 'densenet121.tv_in1k']
      >>> flaxres.list_pretrained("resnet20.flaxres_*")  # these come with the package
      ['resnet20.flaxres_cifar10', 'resnet20.flaxres_digits']
    """
    return [
        tag
        for tag, row in table().items()
        if fnmatch.fnmatch(tag, pattern) or fnmatch.fnmatch(row.architecture, pattern)
    ]


def pretrained_info(name: str) -> Pretrained:
    """Returns what is known of pretrained weights. Needs no network.

    Args:
      name: a tag from `list_pretrained`; an architecture, which stands for timm's default tag; or
        torchvision's name, such as `ResNet50_Weights.IMAGENET1K_V2`.

    Raises:
      InputError: there is no such tag; the message names the nearest ones.

    Examples:
      >>> import flaxres
      >>> info = flaxres.pretrained_info("ResNet50_Weights.IMAGENET1K_V2")
      >>> info.tag, info.test_input_size, info.test_crop_pct
      ('resnet50.tv2_in1k', 224, 0.965)
    """
    rows = table()
    if TORCHVISION.fullmatch(name):
        names = {row.torchvision: row for row in rows.values() if row.torchvision}
        # DEFAULT is the newest of a class.
        names |= {f"{n.partition('.')[0]}.DEFAULT": names[n] for n in sorted(names)}
        if name not in names:
            raise _unknown("torchvision's weights", name, list(names))
        return names[name]
    if name in rows:
        return rows[name]
    defaults = {row.architecture: row for row in rows.values() if row.default}
    if name not in defaults:
        raise _unknown("pretrained tag", name, [*rows, *defaults])
    return defaults[name]


def _unknown(kind: str, name: str, choices: list[str]) -> InputError:
    near = nearest(name, choices)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return InputError(
        f"unknown {kind} {name!r}: {hint}`flaxres models --tags` lists all tags; "
        "another repository of the hub is given as owner/name"
    )
