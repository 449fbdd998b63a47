"""Predictions of images' classes, from a hub tag, a file of weights, or a run."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from flaxres import figures
from flaxres.data.builders import CIFAR10_CLASSES
from flaxres.data.folders import files_below
from flaxres.data.images import is_image
from flaxres.data.preprocess import Preprocess, several
from flaxres.errors import InputError
from flaxres.inference.fuse import network_function
from flaxres.inference.int8 import Int8Network
from flaxres.models.network import Network
from flaxres.models.registry import create_model, small_images
from flaxres.paths import expanded
from flaxres.training.losses import probabilities
from flaxres.weights.card import Card, from_metadata
from flaxres.weights.files import read
from flaxres.weights.hub import load_pretrained
from flaxres.weights.transfer import classes, fitted

# Images of a batch. More images are predicted in several batches, in the same memory.
BATCH = 32

Best = list[tuple[str, float]]
"""Classes with their probabilities, the likeliest first."""


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A network with its variables, its preprocessing and the names of its classes.

    With `multi_label` each class is likely or not by itself; see `data.multi_label`. `network`
    computes the logits of preprocessed images in place of the model; see `in_8_bits`.

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
    multi_label: bool = False
    network: Callable[[np.ndarray], jax.Array] | None = None

    def __call__(self, images: Sequence[Any], top: int = 5) -> list[Best]:
        """Returns the `top` classes of each image with their probabilities, the likeliest first.

        Memory does not grow with the number of images.

        Args:
          images: as `Preprocess` takes them.
          top: the number of classes.

        Raises:
          InputError: an image can't be read.
        """
        return [best for best in self.stream(several(images), top) if best is not None]

    def stream(
        self,
        images: Sequence[Any],
        top: int = 5,
        unreadable: Callable[[Any, InputError], None] | None = None,
    ) -> Iterator[Best | None]:
        """Yields the classes of each image, batch by batch.

        Args:
          images: as `Preprocess` takes them.
          top: the number of classes.
          unreadable: called with an image that can't be read and the error, which it may raise;
            the image yields None. Without it, the error is raised.
        """
        for first in range(0, len(images), BATCH):
            part = images[first : first + BATCH]
            inputs = self._inputs(part, unreadable)
            readable = [array for array in inputs if array is not None]
            rows = iter(self._probabilities(readable, len(images) > BATCH) if readable else ())
            for array in inputs:
                yield None if array is None else self.best(next(rows), top)

    def _inputs(
        self, images: Sequence[Any], unreadable: Callable[[Any, InputError], None] | None
    ) -> list[np.ndarray | None]:
        """Returns the network's input of each image, None for one that can't be read."""
        try:
            return list(self.preprocess(images))
        except InputError as error:
            if unreadable is None:
                raise
            if len(images) == 1:
                unreadable(images[0], error)
                return [None]
        return [array for image in images for array in self._inputs([image], unreadable)]

    def _probabilities(self, inputs: Sequence[np.ndarray], whole: bool) -> np.ndarray:
        """Runs a batch; `whole` pads it to `BATCH`, so that all batches share one program."""
        batch = np.stack(inputs)
        if whole:
            batch = np.pad(batch, ((0, BATCH - len(batch)), (0, 0), (0, 0), (0, 0)))
        return self.probabilities(batch)[: len(inputs)]

    def probabilities(self, batch: np.ndarray) -> np.ndarray:
        """Returns the probabilities `(N, K)` of the classes of a preprocessed batch."""
        logits = self._logits(batch)
        return np.asarray(probabilities(logits, self.multi_label))

    def best(self, row: np.ndarray, top: int) -> Best:
        """Returns the `top` classes of one image's probabilities, the likeliest first."""
        order = np.argsort(-row, kind="stable")[:top]
        return [(self.classes[i], float(row[i])) for i in order]

    def for_photographs(self) -> "Predictor":
        """Returns the predictor with `Preprocess.for_photographs`."""
        return dataclasses.replace(self, preprocess=self.preprocess.for_photographs())

    def in_8_bits(self, images: Sequence[Any]) -> "Predictor":
        """Returns the predictor in 8 bits: see `flaxres.inference.int8.Int8Network`.

        Args:
          images: paths, encoded bytes or PIL images, a few hundred like those to predict.

        Raises:
          InputError: an image can't be read, or this machine doesn't compute in 8 bits.
        """
        typical = self.preprocess(images)
        return dataclasses.replace(self, network=Int8Network(self.model, self.variables, typical))

    @functools.cached_property
    def _logits(self) -> Callable[[np.ndarray], jax.Array]:
        return self.network or network_function(self.model, self.variables)


def from_tag(tag: str) -> Predictor:
    """Returns the predictor of a pretrained weight; see `flaxres.load_pretrained`."""
    model, variables, preprocess = load_pretrained(tag)
    names = preprocess.classes or class_names(None, model.num_classes, False)
    return Predictor(model, variables, preprocess, names, preprocess.multi_label)


def from_weights(
    path: str, name: str | None = None, size: int | None = None, names: str | None = None
) -> Predictor:
    """Returns the predictor of a file of weights.

    Args:
      path: the file; `~` is the home folder.
      name: of the model; None for a file that names its network, as `flaxres convert` writes.
      size: of the images, pixels; None takes the file's, or else the model's.
      names: a text file with the names of the classes; None takes the file's, or else those of
        `class_names`.

    Raises:
      InputError: the model is unknown, or the file is not of this model.
    """
    model, variables, card = read_network(path, name)
    small = name is not None and small_images(name)
    labels = card.classes if names is None else ()
    labels = labels or class_names(names, model.num_classes, small)
    given = _preprocess(card, size, small)
    return Predictor(model, variables, given, labels, card.multi_label)


def read_network(path: str, name: str | None = None) -> tuple[Network, Any, Card]:
    """Returns the network of a file of weights, its variables, and what the file says of it.

    Args:
      path, name: as for `from_weights`.

    Raises:
      InputError: the model is unknown, or the file is not of this model.
    """
    if name is not None:
        create_model(name)  # refuses an unknown name before the file is read
    weights, metadata = read(pathlib.Path(path))
    card = from_metadata(metadata, path)
    if name is not None:
        model = create_model(name, num_classes=classes(weights))
    elif card.network is not None:
        model = card.network
    else:
        raise InputError(
            f"weights {path!r} don't name their network: give --model, e.g. --model resnet50"
        )
    return model, fitted(weights, card, path, model, adapt=False), card


def stated_preprocess(card: Card) -> Preprocess | None:
    """Returns the preprocessing that a file of weights states."""
    return None if card.preprocess is None else Preprocess(**card.preprocess)


def _preprocess(card: Card, size: int | None, small: bool) -> Preprocess:
    """Returns the preprocessing of a file of weights, for images of `size` pixels."""
    if (stated := stated_preprocess(card)) is not None:
        if size is None:
            return stated
        resize = round(size * stated.resize / stated.size)
        return dataclasses.replace(stated, size=size, resize=resize)
    size = size or (32 if small else 224)
    return Preprocess(size, size if small else round(size * 256 / 224))


def image_files(paths: Sequence[str]) -> Iterator[str]:
    """Yields files as they are, and the images in folders, at any depth, in order of their names.

    A file in a folder is an image by its content, whatever its name; see `files_below`.

    Args:
      paths: files and folders.

    Raises:
      InputError: a folder holds no image.
    """
    for path in paths:
        if not os.path.isdir(path):  # noqa: PTH112 (false where it can't be read)
            yield path
            continue
        files, _ = files_below(pathlib.Path(path))
        images = [str(file) for file in files if is_image(file)]
        if not images:
            raise InputError(f"{path!r} holds no images among {len(files)} files: give another")
        yield from images


def from_workdir(workdir: str) -> Predictor:
    """Returns the predictor of a run's newest checkpoint, with its evaluation's preprocessing.

    Raises:
      InputError: the folder has no run.
    """
    # Loads Orbax, which tags and files of weights don't need.
    from flaxres.inference.runs import read_run

    run, config = read_run(workdir)
    return Predictor(*run, config.data.multi_label)


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
            lines = expanded(path).read_text(encoding="utf-8").splitlines()
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
        draw_bars(right, best)
    figures.save(figure, target, "--plot")


def draw_bars(axes: Any, best: Sequence[tuple[str, float]]) -> None:
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
