"""Predictions of images' classes, from a hub tag, a file of weights, or a run."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from flaxres import figures
from flaxres.data.builders import CIFAR10_CLASSES
from flaxres.data.preprocess import ImageLike, Preprocess
from flaxres.errors import InputError
from flaxres.models.network import Network
from flaxres.models.registry import create_model, small_images
from flaxres.training.xla import compiler_options
from flaxres.weights.files import read
from flaxres.weights.hub import load_pretrained
from flaxres.weights.transfer import classes, fitted

# Images of a batch. More images are predicted in several batches, in the same memory.
BATCH = 32


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A network with its variables, its preprocessing and the names of its classes.

    Examples:
      >>> import flaxres, jax, numpy as np
      >>> from PIL import Image
      >>> model = flaxres.ResNet20(num_classes=2)
      >>> variables = model.init(jax.random.key(0), np.zeros((1, 32, 32, 3)))
      >>> predictor = Predictor(model, variables, Preprocess(32, 32), ("cat", "dog"))
      >>> (best,) = predictor([Image.new("RGB", (40, 40))], top=1)
      >>> len(best)
      1
    """

    model: Network
    variables: Any
    preprocess: Preprocess
    classes: tuple[str, ...]

    def __call__(self, images: Sequence[Any], top: int = 5) -> list[list[tuple[str, float]]]:
        """Returns the `top` classes of each image with their probabilities, the likeliest first.

        Memory does not grow with the number of images.

        Args:
          images: paths, encoded bytes or PIL images.
          top: the number of classes.

        Raises:
          InputError: an image can't be read.
        """
        apply = jax.jit(self.model.apply, compiler_options=compiler_options())
        several = [images] if isinstance(images, ImageLike) else images
        parts = []
        for first in range(0, len(several), BATCH):
            batch = self.preprocess(several[first : first + BATCH])
            count = len(batch)
            if first:  # all batches have one shape, for which the network is compiled once
                batch = np.pad(batch, ((0, BATCH - count), (0, 0), (0, 0), (0, 0)))
            parts.append(np.asarray(jax.nn.softmax(apply(self.variables, batch)))[:count])
        if not parts:
            return []
        probabilities = np.concatenate(parts)
        order = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top]
        return [
            [(self.classes[i], float(row[i])) for i in best]
            for row, best in zip(probabilities, order, strict=True)
        ]


def from_tag(tag: str) -> Predictor:
    """Returns the predictor of a pretrained weight; see `flaxres.load_pretrained`."""
    model, variables, preprocess = load_pretrained(tag)
    names = preprocess.classes or class_names(None, model.num_classes, False)
    return Predictor(model, variables, preprocess, names)


def from_weights(path: str, name: str, size: int | None, names: str | None) -> Predictor:
    """Returns the predictor of a file of weights.

    Args:
      path: the file.
      name: of the model.
      size: of the images, pixels; None takes the model's.
      names: a text file with the names of the classes; see `class_names`.

    Raises:
      InputError: the model is unknown, or the file is not of this model.
    """
    create_model(name)
    content = read(pathlib.Path(path))
    model = create_model(name, num_classes=classes(content[0]))
    small = small_images(name)
    size = size or (32 if small else 224)
    preprocess = Preprocess(size, size if small else round(size * 256 / 224))
    variables = fitted(content, path, model, adapt=False)
    return Predictor(model, variables, preprocess, class_names(names, model.num_classes, small))


def from_workdir(workdir: str) -> Predictor:
    """Returns the predictor of a run's newest checkpoint, with its evaluation's preprocessing.

    Raises:
      InputError: the folder has no run.
    """
    # Loads Orbax, which tags and files of weights don't need.
    from flaxres.inference.runs import load_run

    return Predictor(*load_run(workdir))


def class_names(path: str | None, count: int, small: bool) -> tuple[str, ...]:
    """Returns the names of the classes.

    Args:
      path: a text file with a name a line. None gives those of CIFAR-10 for a CIFAR network of 10
        classes, ImageNet's WordNet ids for 1,000 classes, else numbers.
      count: the number of classes.
      small: the network is one for CIFAR.

    Raises:
      InputError: the file can't be read, or has another number of names.

    Examples:
      >>> class_names(None, 2, False)
      ('class 0', 'class 1')
    """
    if path is not None:
        try:
            lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"--classes {path!r} can't be read ({error}): give a text file with one name a line"
            ) from error
        names = tuple(line.strip() for line in lines if line.strip())
        if len(names) != count:
            raise InputError(
                f"--classes {path!r} has {len(names)} names: the weights have {count} classes"
            )
        return names
    if count == 10 and small:
        return CIFAR10_CLASSES
    if count == 1000:
        import tensorflow_datasets as tfds

        labels = tfds.core.tfds_path("datasets/imagenet2012") / "labels.txt"
        return tuple(labels.read_text().split())
    return tuple(f"class {i}" for i in range(count))


def draw(
    images: Sequence[str],
    predictions: Sequence[Sequence[tuple[str, float]]],
    predictor: Predictor,
    target: str,
) -> None:
    """Draws each image as the network gets it, with the bars of its likeliest classes.

    Args:
      images: paths.
      predictions: of `predictor` for these images.
      predictor: gives the crop.
      target: the PNG file.

    Raises:
      InputError: the file can't be written.
    """
    plt = figures.pyplot()
    figure, rows = plt.subplots(
        len(images),
        2,
        figsize=(8, 2.2 * len(images)),
        layout="constrained",
        squeeze=False,
        width_ratios=(1, 3),
    )
    for (left, right), image, best in zip(rows, images, predictions, strict=True):
        left.imshow(predictor.preprocess.crop(image))
        left.set_title(pathlib.Path(image).name, fontsize=9)
        left.axis("off")
        _draw_bars(right, best)
    figures.save(figure, target, "--plot")


def _draw_bars(axes: Any, best: Sequence[tuple[str, float]]) -> None:
    """Draws classes and their probabilities, the likeliest at the top."""
    names, values = zip(*reversed(best), strict=True)
    axes.barh(range(len(names)), [100 * value for value in values], color="#0072B2")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlim=(0, 100), xlabel="probability, %")
    for y, value in enumerate(values):
        inside = value > 0.85
        axes.text(
            100 * value + (-1 if inside else 1),
            y,
            f"{100 * value:.1f}%",
            va="center",
            ha="right" if inside else "left",
            color="white" if inside else "black",
        )
