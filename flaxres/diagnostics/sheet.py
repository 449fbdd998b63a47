"""Draws a contact sheet of training images as the network gets them."""

import jax
import jax.numpy as jnp
import numpy as np

from flaxres import figures
from flaxres.config.check import check
from flaxres.config.schema import Config
from flaxres.data import decode
from flaxres.data.loader import Loader
from flaxres.data.order import sample_ids
from flaxres.data.rows import Rows
from flaxres.training.augmentation import inputs
from flaxres.training.mesh import data_mesh, split
from flaxres.training.run import Run, evaluation_transform, open_data, training_transform

SAMPLES, DRAWS = 8, 7


def draw_sheet(config: Config, target: str) -> None:
    """Draws eight images of the training split, a row each.

    The first column is the evaluation's crop; the others are seven draws of the training's crop and
    augmentation, mixed as in a batch.

    Args:
      config: the settings.
      target: the PNG file.

    Raises:
      InputError: the config could not train, or the data can't be read or the file written.
    """
    check(config)
    data, seed = config.data, config.train.seed
    (source,) = open_data(data, [data.train_split])
    run = Run(config, source, source)
    ids = sample_ids(np.arange(SAMPLES, dtype=np.uint32), len(source), seed).astype(np.int64)
    plain = _load(run, ids, evaluation_transform(data))
    # Another draw is the same record at another position. Neighbours, which are mixed, are
    # different images.
    drawn = _load(run, np.tile(ids, DRAWS), training_transform(run, 0))

    def augment(batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return inputs(config, batch, seed, len(source), jnp.int32(0), len(source.classes))

    augmented, targets = jax.jit(augment)(drawn)
    pixels = np.asarray(augmented, np.float32) * np.asarray(data.std) + np.asarray(data.mean)
    images = [*np.asarray(plain["image"]), *np.clip(255 * pixels, 0, 255).astype(np.uint8)]
    if data.multi_label:
        labels = [*np.asarray(plain["label"]), *np.asarray(targets, np.float32)]
        names = [_listed(row, source.classes) for row in labels]
    else:
        names = [source.classes[label] for label in plain["label"]]
        names += [_described(row, source.classes) for row in np.asarray(targets, np.float32)]
    _layout(images, names, target)


def _load(run: Run, records: np.ndarray, transform: decode.Transform) -> dict[str, jax.Array]:
    """Returns the batch of these records, on one device."""
    rows = Rows(np.arange(len(records), dtype=np.uint32), records, transform, True)
    speed, bad_images = run.speed(len(records)), run.config.data.bad_images
    with Loader(run.train, [rows], split(data_mesh(1)), speed, bad_images) as loader:
        return next(iter(loader))


def _described(target: np.ndarray, classes: tuple[str, ...]) -> str:
    """Returns a target in words: `cat`, or `60% cat` and `40% dog`, a line each, for a mixture."""
    first, second = (int(i) for i in np.argsort(-target)[:2]) if len(target) > 1 else (0, 0)
    # Label smoothing gives the same to all classes, which is no mixture.
    rest = target[second] - np.sort(target)[0]
    if rest < 0.01:
        return classes[first]
    share = target[first] / (target[first] + target[second])
    return f"{100 * share:.0f}% {classes[first]}\n{100 * (1 - share):.0f}% {classes[second]}"


def _listed(target: np.ndarray, classes: tuple[str, ...]) -> str:
    """Returns the labels of an image in words, a line each; of mixtures with their shares."""
    lines = [
        classes[i] if target[i] > 0.99 else f"{100 * target[i]:.0f}% {classes[i]}"
        for i in np.flatnonzero(target > 0.01)
    ]
    return "\n".join([*lines[:2], "…"] if len(lines) > 3 else lines) or "no label"


def _layout(images: list[np.ndarray], names: list[str], target: str) -> None:
    """Draws the images in columns of `SAMPLES`."""
    plt = figures.pyplot()
    size = 1.7 * (1 + DRAWS), 1.85 * SAMPLES
    figure, axes = plt.subplots(SAMPLES, 1 + DRAWS, figsize=size, layout="constrained")
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        cell = axes[i % SAMPLES, i // SAMPLES]
        cell.imshow(image)
        cell.set_title("\n".join(map(_shortened, name.split("\n"))), fontsize=7)
        cell.axis("off")
    figure.suptitle("left: the evaluation's crop; right: seven draws of training", fontsize=10)
    figures.save(figure, target, "--sheet")


def _shortened(line: str) -> str:
    return line if len(line) < 26 else line[:24] + "…"
