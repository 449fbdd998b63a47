"""Draws the learning rate and the image size of a config by epoch."""

from typing import Any

import jax
import numpy as np

from flaxres import figures
from flaxres.config.schema import Config
from flaxres.diagnostics.described import described_run
from flaxres.training.run import training_transform


def schedule(config: Config, target: str) -> dict[str, Any]:
    """Draws learning rate and picture size by epoch into the file `target`, and returns what is worth telling of them."""
    plt = figures.pyplot()
    run = described_run(config)
    steps = np.unique(np.linspace(0, run.steps - 1, min(run.steps, 2000)).astype(int))
    rates = np.asarray(jax.vmap(run.schedule)(steps), np.float64)
    sizes = np.asarray([training_transform(run, int(step)).size for step in steps])
    epochs = steps / run.steps_per_epoch
    figure, rate = plt.subplots(figsize=(8, 4), layout="constrained")
    rate.plot(epochs, rates, color="#0072b2", label="learning rate")
    rate.set(xlabel="epoch", ylabel="learning rate", xlim=(0, epochs[-1]), ylim=(0, None))
    rate.set_title(
        f"{config.model.name} on {config.data.name}: {config.optim.name}, {run.steps:,} steps of {config.train.batch_size:,}"
    )
    rate.grid(alpha=0.3)
    if len(set(sizes)) > 1:
        size = rate.twinx()
        size.step(epochs, sizes, where="post", color="#d55e00", linestyle="--", label="pixels")
        size.set(ylabel="side of the pictures, pixels", ylim=(0, 1.1 * sizes.max()))
        figure.legend(loc="outside lower center", ncols=2)
    figures.save(figure, target, "--out")
    return {
        "steps": run.steps,
        "steps_per_epoch": run.steps_per_epoch,
        "first_rate": rates[0],
        "peak_rate": rates.max(),
        "last_rate": rates[-1],
        "sizes": sorted(set(sizes.tolist())),
    }
