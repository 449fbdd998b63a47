"""A contact sheet: what the network sees of some training images, so that a person can look at it."""

import jax
import jax.numpy as jnp
import numpy as np

from flaxres import figures
from flaxres.config.check import check
from flaxres.config.schema import Config
from flaxres.data import decode
from flaxres.data.datasets import open_or_prepare
from flaxres.data.loader import Loader
from flaxres.data.order import sample_ids
from flaxres.data.rows import Rows
from flaxres.training.mesh import data_mesh, split
from flaxres.training.run import Run, training_transform
from flaxres.training.steps import inputs

SAMPLES, DRAWS = 8, 7


def draw_sheet(config: Config, target: str) -> None:
    """Draws eight images of the training split, a row each: the evaluation's crop, then seven draws of training, mixed as in a batch, to a PNG.

    Raises InputError for a config that could not train, data that can't be read, or a `target` that can't be written.
    """
    check(config)
    data = config.data
    (source,) = open_or_prepare(
        data.name, [data.train_split], data.source, data.data_dir, data.bad_images
    )
    run = Run(config, source, source)
    ids = sample_ids(np.arange(SAMPLES, dtype=np.uint32), len(source), config.train.seed).astype(
        np.int64
    )
    plain = load(run, ids, decode.CentreCrop(data.eval_size, data.eval_resize, data.interpolation))
    # Another draw is another position of the same record; neighbours, which are mixed, are different images.
    drawn = load(run, np.tile(ids, DRAWS), training_transform(run, 0))
    augmented, targets = jax.jit(
        lambda batch: inputs(config, batch, len(source), jnp.int32(0), len(source.classes))
    )(drawn)
    seen = 255 * (np.asarray(augmented, np.float32) * np.asarray(data.std) + np.asarray(data.mean))
    pictures = [*np.asarray(plain["image"]), *np.clip(seen, 0, 255).astype(np.uint8)]
    names = [source.classes[label] for label in plain["label"]] + [
        spoken(row, source.classes) for row in np.asarray(targets, np.float32)
    ]
    layout(pictures, names, target)


def load(run: Run, records: np.ndarray, transform: decode.Transform) -> dict[str, jax.Array]:
    rows = Rows(np.arange(len(records), dtype=np.uint32), records, transform, True)
    with Loader(
        run.train, [rows], split(data_mesh(1)), run.speed, run.config.data.bad_images
    ) as loader:
        return next(iter(loader))


def spoken(target: np.ndarray, classes: tuple[str, ...]) -> str:
    """A target in words: `cat`, or `60% cat` and `40% dog`, a line each, where two are mixed."""
    first, second = (int(i) for i in np.argsort(-target)[:2]) if len(target) > 1 else (0, 0)
    rest = target[second] - np.sort(target)[0]  # what label smoothing gives to all is no mixture
    if rest < 0.01:
        return classes[first]
    share = target[first] / (target[first] + target[second])
    return f"{100 * share:.0f}% {classes[first]}\n{100 * (1 - share):.0f}% {classes[second]}"


def layout(pictures: list[np.ndarray], names: list[str], target: str) -> None:
    plt = figures.pyplot()
    figure, axes = plt.subplots(
        SAMPLES, 1 + DRAWS, figsize=(1.7 * (1 + DRAWS), 1.85 * SAMPLES), layout="constrained"
    )
    for i, (picture, name) in enumerate(zip(pictures, names, strict=True)):
        cell = axes[i % SAMPLES, i // SAMPLES]
        cell.imshow(picture)
        cell.set_title(
            "\n".join(line if len(line) < 26 else line[:24] + "…" for line in name.split("\n")),
            fontsize=7,
        )
        cell.axis("off")
    figure.suptitle("left: as evaluation sees it; the others: seven draws of training", fontsize=10)
    figures.save(figure, target, "--sheet")
