"""Errors by epoch of plain and residual networks of 20 to 56 layers (He et al. 2016, figure 6).

Plain networks get worse with depth, residual networks do not.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from flaxres import figures
from flaxres.lab.claims import Claim
from flaxres.lab.drawing import band, over_seeds
from flaxres.lab.networks import KINDS, Trained
from flaxres.lab.report import Experiment, Say, Settings, seed_by_seed

DEPTHS = (20, 32, 44, 56)
SHADES = ("#56B4E9", "#009E73", "#E69F00", "#000000")


@dataclasses.dataclass(frozen=True)
class Result:
    """Errors in [0, 1] by (kind, depth).

    Attributes:
      training: (epoch, error) on the augmented training images during training.
      test: (epoch, error) on the test split.
      fit: error on the whole training split at the end. Errors there can't be blamed on
        overfitting.
      data: name of the dataset.
    """

    training: dict[tuple[str, int], Float[np.ndarray, "epochs 2"]]
    test: dict[tuple[str, int], Float[np.ndarray, "epochs 2"]]
    fit: dict[tuple[str, int], float]
    data: str


@seed_by_seed
def run(settings: Settings, say: Say) -> Result:
    """Trains the networks, unless `settings.out` has them, and reads their logs.

    Args:
      settings: all but `image`, `weights` and `model` are used.
      say: receives lines of progress.
    """
    training, test, fitted = {}, {}, {}
    for depth in DEPTHS:
        for kind in KINDS:
            network = Trained(settings, kind, depth, say)
            training[kind, depth], test[kind, depth] = (
                network.curve(f"{split}/top1") * np.array([1, -1]) + np.array([0, 1])
                for split in ("train", "eval")
            )
            fitted[kind, depth] = network.error(network.run.train)
    return Result(training, test, fitted, settings.data)


def draw(results: Sequence[Result]) -> Any:
    """Draws the errors by epoch; returns a matplotlib figure."""
    plt = figures.pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained", sharey=True)
    for one, kind in zip(axes, KINDS, strict=True):
        for depth, colour in zip(DEPTHS, SHADES, strict=True):
            curves = [result.test[kind, depth] for result in results]
            epochs, errors = curves[0][:, 0], [100 * curve[:, 1] for curve in curves]
            band(one, epochs, errors, color=colour, label=f"{depth} layers, test", linewidth=1.8)
            training = np.median([result.training[kind, depth] for result in results], 0)
            dashed = {"linestyle": "--", "linewidth": 1, "label": f"{depth} layers, training"}
            one.plot(*training.T * [[1], [100]], color=colour, **dashed)
        one.set(title=f"{kind} networks", xlabel="epoch", ylim=(0, 100))
        one.grid(alpha=0.3)
    axes[0].set(ylabel="error, %")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(DEPTHS))
    figure.suptitle(
        f"Error by epoch on {results[0].data} of networks with and without shortcuts"
        + over_seeds(results)
    )
    return figure


def rows(result: Result) -> list[dict[str, Any]]:
    """Returns one row for each split, network and epoch."""
    return [
        {"kind": kind, "depth": depth, "split": split, "epoch": epoch, "error": error}
        for split, curves in (("train", result.training), ("test", result.test))
        for (kind, depth), curve in curves.items()
        for epoch, error in curve
    ]


def claims(result: Result) -> list[Claim]:
    """Tests whether depth harms plain networks, and only those, in training and test error."""
    shallow, deep = DEPTHS[0], DEPTHS[-1]
    worse = {kind: 100 * (result.fit[kind, deep] - result.fit[kind, shallow]) for kind in KINDS}
    error = {kind: 100 * float(result.test[kind, deep][-1, 1]) for kind in KINDS}
    return [
        Claim(
            f"Plain networks of {deep} layers fit worse than those of {shallow}; "
            "residual ones don't",
            f"error on the training split of {deep} layers less that of {shallow}, points",
            worse["plain"],
            worse["residual"],
            worse["plain"] > 5 > worse["residual"],
        ),
        Claim(
            f"and it shows in what they learn ({deep} layers)",
            "test error at the end, %",
            error["plain"],
            error["residual"],
            error["plain"] > error["residual"] + 2,
        ),
    ]


EXPERIMENT = Experiment(
    "plain and residual CIFAR networks of 20 to 56 layers", run, draw, rows, claims
)
