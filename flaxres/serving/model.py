"""A network to serve, with the crop and the classes that belong to it."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .crop import FILTERS, centre_crop
from .errors import StartError

if TYPE_CHECKING:  # the folder of an export does not need it
    from jaxtyping import Float32, UInt8

PROGRAM, CLASSES, PREPROCESS = "model.jax_export", "classes.json", "preprocess.json"
LARGEST_SIDE = 4096


@dataclasses.dataclass(frozen=True)
class Crop:
    """The preprocessing of an image before the network; see `flaxres.serving.crop.centre_crop`.

    Attributes:
      size: height and width of the crop in pixels.
      resize: short side of the image before the crop.
      interpolation: filter of the resizing.
      exif: turn photographs upright by their EXIF orientation.
      squash: resize both sides, whatever their ratio; off in folders of older versions.

    Examples:
      >>> crop = Crop(32, 36, "bilinear", True)
      >>> crop(Image.new("RGB", (64, 48))).shape
      (32, 32, 3)
      >>> Crop.from_json(crop.to_json()) == crop
      True
    """

    size: int
    resize: int
    interpolation: str
    exif: bool
    squash: bool = False

    def __call__(self, image: bytes | Image.Image) -> UInt8[np.ndarray, "size size 3"]:
        """Returns the crop; raises UnreadableError if the image can't be decoded."""
        return centre_crop(
            image, self.size, self.resize, self.interpolation, self.exif, self.squash
        )

    def to_json(self) -> str:
        """Returns the content of preprocess.json."""
        return json.dumps(dataclasses.asdict(self)) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Crop:
        """Reads the content of preprocess.json.

        Raises:
          ValueError: a setting is missing, unknown or breaks its rule.
        """
        settings = json.loads(text)
        if isinstance(settings, dict):
            settings = {"squash": False} | settings
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(settings, dict) or sorted(settings) != sorted(names):
            raise ValueError(f"the rule is one JSON object with the keys {', '.join(names)}")
        for name in ("size", "resize"):
            side = settings[name]
            if type(side) is not int or not 0 < side <= LARGEST_SIDE:
                raise ValueError(f"{name}={side!r}: the rule is 1 to {LARGEST_SIDE}")
        if settings["interpolation"] not in FILTERS:
            given = settings["interpolation"]
            raise ValueError(f"interpolation={given!r}: choose from {', '.join(FILTERS)}")
        for name in ("exif", "squash"):
            if type(settings[name]) is not bool:
                raise ValueError(f"{name}={settings[name]!r}: the rule is true or false")
        return cls(**settings)


@dataclasses.dataclass(frozen=True)
class Model:
    """A network to serve.

    Attributes:
      crop: preprocesses an image.
      classes: the names of the classes, no two alike, in the order of the probabilities; see
        `distinct`.
      program: maps (N, S, S, 3) uint8 images to (N, classes) float32 probabilities. It is compiled
        for each N on first use.
    """

    crop: Crop
    classes: tuple[str, ...]
    program: Callable[[UInt8[np.ndarray, "n s s 3"]], Float32[np.ndarray, "n classes"]]

    def best(self, row: Float32[np.ndarray, " classes"], top: int) -> dict[str, float]:
        """Returns the `top` classes with their probabilities, the likeliest first."""
        order = np.argsort(-row, kind="stable")[:top]
        return {self.classes[i]: float(row[i]) for i in order}


def load(folder: pathlib.Path) -> Model:
    """Loads the network of a folder that `flaxres export` wrote.

    Args:
      folder: the folder.

    Raises:
      StartError: a file is missing, can't be read, or does not fit the others.
    """
    crop = _read(folder / PREPROCESS, Crop.from_json)
    classes = _read(folder / CLASSES, _class_names)
    return Model(crop, classes, _read_program(folder / PROGRAM, crop.size, len(classes)))


def _read(path: pathlib.Path, parse: Callable[[str], Any]) -> Any:
    """Returns a parsed file of an export."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StartError(
            f"{str(path)!r} can't be read ({reason}): give a folder of `flaxres export`, or export "
            "again"
        ) from error


def _class_names(text: str) -> tuple[str, ...]:
    """Reads the content of classes.json."""
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("the rule is one JSON list of names")
    return distinct(names)


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Returns names of classes, no two alike: those that occur twice get their number.

    Examples:
      >>> distinct(["crane", "lark", "crane"])
      ('crane (0)', 'lark', 'crane (2)')
    """
    counts = collections.Counter(names)
    return tuple(name if counts[name] == 1 else f"{name} ({i})" for i, name in enumerate(names))


def _read_program(
    path: pathlib.Path, size: int, classes: int
) -> Callable[[UInt8[np.ndarray, "n s s 3"]], Float32[np.ndarray, "n classes"]]:
    """Returns the compiled program of an export."""
    import jax
    import jax.export

    try:
        exported = jax.export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # of many types, depending on the bytes
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
        raise StartError(
            f"{str(path)!r} can't be read ({reason}): export again, with a jax that is not newer "
            f"than the {jax.__version__} of this machine"
        ) from error
    (images,), (rows,) = exported.in_avals, exported.out_avals
    if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3) or rows.ndim != 2:
        raise StartError(
            f"{str(path)!r} maps {images} to {rows}: the rule is uint8[batch,{size},{size},3] to "
            "probabilities; export without --logits"
        )
    if rows.shape[1] != classes:
        raise StartError(
            f"{str(path)!r} has {rows.shape[1]} classes, {CLASSES} {classes}: export again"
        )
    compiled = jax.jit(exported.call)
    return lambda images: np.asarray(compiled(images))
