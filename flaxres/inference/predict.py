"""`flaxres predict`: the classes of some pictures, from a hub tag, a file of weights, or a run."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from flaxres import figures
from flaxres.data.preprocess import Preprocess
from flaxres.errors import InputError
from flaxres.models.network import Network
from flaxres.models.registry import create_model, small_images
from flaxres.training.xla import compiler_options


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A network with its weights, its preprocessing and the names of its classes."""

    model: Network
    variables: Any
    preprocess: Preprocess
    classes: tuple[str, ...]

    def __call__(self, images: Sequence[str], top: int = 5) -> list[list[tuple[str, float]]]:
        """For each image file, the `top` classes with their probabilities, the likeliest first."""
        logits = jax.jit(self.model.apply, compiler_options=compiler_options())(
            self.variables, self.preprocess(images)
        )
        probabilities = np.asarray(jax.nn.softmax(logits))
        order = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top]
        return [
            [(self.classes[i], float(row[i])) for i in best]
            for row, best in zip(probabilities, order, strict=True)
        ]


def from_tag(tag: str) -> Predictor:
    from flaxres.weights.hub import load_pretrained

    model, variables, preprocess = load_pretrained(tag)
    return Predictor(
        model,
        variables,
        preprocess,
        preprocess.classes or class_names(None, model.num_classes, False),
    )


def from_weights(path: str, name: str, size: int | None, names: str | None) -> Predictor:
    """A file of weights of the model `name`; pictures of `size` pixels, by default the model's own."""
    from flaxres.weights.files import read
    from flaxres.weights.transfer import classes, fitted

    create_model(name)
    content = read(pathlib.Path(path))
    model = create_model(name, num_classes=classes(content[0]))
    size = size or (32 if small_images(name) else 224)
    preprocess = Preprocess(size, size if small_images(name) else round(size * 256 / 224))
    return Predictor(
        model,
        fitted(content, path, model, adapt=False),
        preprocess,
        class_names(names, model.num_classes, small_images(name)),
    )


def from_workdir(workdir: str) -> Predictor:
    """The newest checkpoint of a run, with the evaluation's preprocessing of its config."""
    from flaxres.config.files import from_json
    from flaxres.training.loop import trained

    folder = pathlib.Path(workdir)
    run, state = trained(from_json(folder / "config.json"), folder)
    data = run.config.data
    preprocess = Preprocess(
        data.eval_size, data.eval_resize, data.interpolation, data.mean, data.std
    )
    return Predictor(run.model, jax.device_get(state.answer), preprocess, run.train.classes)


def class_names(path: str | None, count: int, small: bool) -> tuple[str, ...]:
    """Names from a text file, one a line; without it CIFAR-10's for a CIFAR network of 10, ImageNet's WordNet ids for 1,000, else numbers."""
    if path is not None:
        try:
            names = tuple(
                line.strip() for line in pathlib.Path(path).read_text().splitlines() if line.strip()
            )
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"--classes {path!r} can't be read ({error}): give a text file with one name a line"
            ) from error
        if len(names) != count:
            raise InputError(
                f"--classes {path!r} has {len(names)} names: the weights have {count} classes"
            )
        return names
    if count == 10 and small:
        from flaxres.data.builders import CIFAR10_CLASSES

        return CIFAR10_CLASSES
    if count == 1000:
        import tensorflow_datasets as tfds

        return tuple(
            (tfds.core.tfds_path("datasets/imagenet2012") / "labels.txt").read_text().split()
        )
    return tuple(f"class {i}" for i in range(count))


def draw(
    images: Sequence[str],
    predictions: list[list[tuple[str, float]]],
    predictor: Predictor,
    target: str,
) -> None:
    """A picture: each image as the network sees it, and its likeliest classes as bars."""
    plt = figures.pyplot()
    figure, rows = plt.subplots(
        len(images),
        2,
        figsize=(8, 2.2 * len(images)),
        layout="constrained",
        squeeze=False,
        width_ratios=(1, 3),
    )
    for (picture, bars), image, best in zip(rows, images, predictions, strict=True):
        picture.imshow(predictor.preprocess.crop(image))
        picture.set_title(pathlib.Path(image).name, fontsize=9)
        picture.axis("off")
        names, values = zip(*reversed(best), strict=True)
        bars.barh(range(len(names)), [100 * value for value in values], color="#0072B2")
        bars.set_yticks(range(len(names)), names)
        bars.set(xlim=(0, 100), xlabel="probability, %")
        for place, value in enumerate(values):
            right = value > 0.85
            bars.text(
                100 * value + (-1 if right else 1),
                place,
                f"{100 * value:.1f}%",
                va="center",
                ha="right" if right else "left",
                color="white" if right else "black",
            )
    figures.save(figure, target, "--plot")
