"""Draws the learning rate and the image size of a config by epoch."""

from typing import Any

import jax
import numpy as np

from flaxres import figures
from flaxres.config.schema import Config
from flaxres.diagnostics.described import described_run
from flaxres.training.run import Run, training_transform


def schedule(config: Config, target: str) -> dict[str, Any]:
    """Draws the learning rate and the image size by epoch.

    Args:
      config: the settings; datasets that flaxres knows need not be there.
      target: the PNG file.

    Returns:
      `steps`, `steps_per_epoch`, `first_rate`, `peak_rate`, `last_rate` and the image `sizes`.

    Raises:
      InputError: the config could not train, or the file can't be written.
    """
    run = described_run(config)
    steps = np.unique(np.linspace(0, run.steps - 1, min(run.steps, 2000)).astype(int))
    rates = np.asarray(jax.vmap(run.schedule)(steps), np.float64)
    sizes = np.asarray([training_transform(run, int(step)).size for step in steps])
    _draw(run, steps / run.steps_per_epoch, rates, sizes, target)
    return {
        "steps": run.steps,
        "steps_per_epoch": run.steps_per_epoch,
        "first_rate": rates[0],
        "peak_rate": rates.max(),
        "last_rate": rates[-1],
        "sizes": sorted(set(sizes.tolist())),
    }


def _draw(run: Run, epochs: np.ndarray, rates: np.ndarray, sizes: np.ndarray, target: str) -> None:
    config = run.config
    plt = figures.pyplot()
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    axes.plot(epochs, rates, color="#0072b2", label="learning rate")
    axes.set(xlabel="epoch", ylabel="learning rate", xlim=(0, epochs[-1]), ylim=(0, None))
    axes.set_title(
        f"{config.model.name} on {config.data.name}: {config.optim.name}, {run.steps:,} steps of "
        f"{config.train.batch_size:,}"
    )
    axes.grid(alpha=0.3)
    if len(set(sizes)) > 1:
        right = axes.twinx()
        right.step(epochs, sizes, where="post", color="#d55e00", linestyle="--", label="pixels")
        right.set(ylabel="side of the images, pixels", ylim=(0, 1.1 * sizes.max()))
        figure.legend(loc="outside lower center", ncols=2)
    figures.save(figure, target, "--out")
