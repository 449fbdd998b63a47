"""Explanations of photographs by a predictor, and their figure."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from flaxres import figures
from flaxres.errors import InputError, unknown
from flaxres.inference.explain import grad_cam, integrated_gradients
from flaxres.inference.predict import Best, Predictor, draw_bars

METHODS = ("grad-cam", "integrated-gradients")
SHOWN = 5
# Attributions have a few large values; those above this share of the pixels get the last colour.
SATURATED = 99.0


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The explanation of one photograph.

    Attributes:
      crop: the photograph as the network gets it, before the normalisation.
      best: the five likeliest classes with their probabilities.
      chosen: the explained class with its probability.
      cam: the Grad-CAM map over the pixels of the crop, or None.
      attributions: the integrated gradients, summed over the channels, or None.
    """

    crop: UInt8[np.ndarray, "s s 3"]
    best: Best
    chosen: tuple[str, float]
    cam: Float[np.ndarray, "s s"] | None
    attributions: Float[np.ndarray, "s s"] | None


def class_number(name: str, classes: Sequence[str]) -> int:
    """Returns the number of a class that is given by its name or its number.

    Args:
      name: a name; else a number, counted from 0.
      classes: the names in label order.

    Raises:
      InputError: there is no such class.

    Examples:
      >>> class_number("dog", ("cat", "dog")), class_number("0", ("cat", "dog"))
      (1, 0)
    """
    if name in classes:
        return classes.index(name)
    if name.isdecimal():
        if int(name) < len(classes):
            return int(name)
        raise InputError(
            f"unknown class {name!r}: numbers are 0 to {len(classes) - 1}, in the order of the "
            "labels"
        )
    raise unknown("class", name, classes)


def explanations(
    predictor: Predictor,
    images: Sequence[Any],
    name: str | None = None,
    methods: Sequence[str] = METHODS,
    layer: str | None = None,
    steps: int = 50,
) -> Iterator[Explanation]:
    """Yields the explanation of each image; all of them are read before the first.

    The baseline of integrated gradients is a black image, as in Sundararajan et al. 2017,
    section 3.

    Args:
      predictor: the network.
      images: as `Preprocess` takes them.
      name: name or number of the class to explain; None takes the likeliest of each image.
      methods: of `METHODS`.
      layer: see `flaxres.inference.explain.grad_cam`.
      steps: see `flaxres.inference.explain.integrated_gradients`.

    Raises:
      InputError: an image can't be read, or the class or the layer is unknown.

    Examples:
      >>> import flaxres
      >>> from flaxres.inference.predict import from_tag
      >>> predictor = from_tag("resnet20.flaxres_digits")
      >>> photograph = flaxres.pretrained_info("resnet20.flaxres_digits").example
      >>> (one,) = explanations(predictor, [photograph], methods=["grad-cam"])
      >>> one.chosen[0] == one.best[0][0], one.cam.shape == one.crop.shape[:2]
      (True, True)
    """
    label = None if name is None else class_number(name, predictor.classes)
    preprocess = predictor.preprocess
    crops = [preprocess.crop(image) for image in images]
    black = -np.asarray(preprocess.mean) / np.asarray(preprocess.std)
    for crop in crops:
        batch = preprocess.normalised(crop)[None]
        (row,) = predictor.probabilities(batch)
        best = predictor.best(row, SHOWN)
        number = int(row.argmax()) if label is None else label
        network = (predictor.model, predictor.variables, batch, number)
        cam = attributions = None
        if "grad-cam" in methods:
            cam = np.asarray(grad_cam(*network, layer=layer))[0]
        if "integrated-gradients" in methods:
            gradients = integrated_gradients(*network, baseline=black, steps=steps)
            attributions = np.asarray(gradients)[0].sum(-1)
        chosen = (predictor.classes[number], float(row[number]))
        yield Explanation(crop, best, chosen, cam, attributions)


def draw(
    explained: Sequence[Explanation], images: Sequence[str], target: str, option: str = "--out"
) -> None:
    """Draws each photograph, its explanations, and the bars of its likeliest classes.

    Args:
      explained: the explanations.
      images: paths of the photographs, for the titles.
      target: the PNG file.
      option: the command-line option that named the file, for the error.

    Raises:
      InputError: the file can't be written.
    """
    plt = figures.pyplot()
    panels = 1 + (explained[0].cam is not None) + (explained[0].attributions is not None)
    figure, rows = plt.subplots(
        len(explained),
        panels + 1,
        figsize=(2.9 * panels + 4.2, 3.3 * len(explained)),
        layout="constrained",
        squeeze=False,
        width_ratios=(*(1,) * panels, 1.1),
    )
    for (first, *others, right), one, image in zip(rows, explained, images, strict=True):
        first.imshow(one.crop)
        first.set_title(pathlib.Path(image).name, fontsize=9)
        _draw_maps(others, one)
        for axes in (first, *others):
            axes.axis("off")
        draw_bars(right, one.best)
        name, probability = one.chosen
        right.set_title(f"explained: {name}, {100 * probability:.1f}%", fontsize=9)
    figures.save(figure, target, option)


def _draw_maps(panels: Sequence[Any], one: Explanation) -> None:
    """Draws the maps of an explanation over its photograph in grey."""
    grey = one.crop.mean(-1)
    remaining = iter(panels)
    if one.cam is not None:
        axes = next(remaining)
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
        axes.imshow(one.cam, cmap="inferno", vmin=0, vmax=1, alpha=0.55)
        axes.set_title("Grad-CAM", fontsize=9)
    if one.attributions is not None:
        axes = next(remaining)
        most = np.percentile(np.abs(one.attributions), SATURATED) or 1.0
        axes.imshow(grey, cmap="gray", vmin=-200, vmax=255)  # pale, for the colours above it
        strength = np.minimum(np.abs(one.attributions) / most, 1)
        axes.imshow(one.attributions, cmap="coolwarm", vmin=-most, vmax=most, alpha=strength)
        axes.set_title("integrated gradients (red: for, blue: against)", fontsize=9)
