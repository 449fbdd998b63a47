"""Plain networks get worse with depth, residual ones don't: errors by epoch of 20 to 56 layers (He et al. 2016, figure 6)."""

import dataclasses
from typing import Any

import numpy as np

from flaxres import figures
from flaxres.lab.networks import KINDS, Trained
from flaxres.lab.report import Claim, Experiment, Say, Settings

DEPTHS = (20, 32, 44, 56)
SHADES = ("#56B4E9", "#009E73", "#E69F00", "#000000")


@dataclasses.dataclass(frozen=True)
class Result:
    """By (kind, depth), errors in [0, 1].

    Attributes:
      training, test: (epochs, 2), the epoch, and the error on the augmented training images while they train, and on the test split.
      fit: at the end, on the whole training split: what does not fit cannot be blamed on overfitting.
    """

    training: dict[tuple[str, int], np.ndarray]
    test: dict[tuple[str, int], np.ndarray]
    fit: dict[tuple[str, int], float]
    data: str


def run(settings: Settings, say: Say) -> Result:
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


def draw(result: Result) -> Any:
    plt = figures.pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained", sharey=True)
    for one, kind in zip(axes, KINDS, strict=True):
        for depth, colour in zip(DEPTHS, SHADES, strict=True):
            one.plot(
                *result.test[kind, depth].T * [[1], [100]],
                color=colour,
                label=f"{depth} layers, test",
                linewidth=1.8,
            )
            one.plot(
                *result.training[kind, depth].T * [[1], [100]],
                color=colour,
                label=f"{depth} layers, training",
                linestyle="--",
                linewidth=1,
            )
        one.set(title=f"{kind} networks", xlabel="epoch", ylim=(0, 100))
        one.grid(alpha=0.3)
    axes[0].set(ylabel="error, %")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(DEPTHS)
    )
    figure.suptitle(f"Error by epoch on {result.data} of networks with and without shortcuts")
    return figure


def rows(result: Result) -> list[dict[str, Any]]:
    return [
        {"kind": kind, "depth": depth, "split": split, "epoch": epoch, "error": error}
        for split, curves in (("train", result.training), ("test", result.test))
        for (kind, depth), curve in curves.items()
        for epoch, error in curve
    ]


def claims(result: Result) -> list[Claim]:
    shallow, deep = DEPTHS[0], DEPTHS[-1]
    worse = {kind: 100 * (result.fit[kind, deep] - result.fit[kind, shallow]) for kind in KINDS}
    error = {kind: 100 * float(result.test[kind, deep][-1, 1]) for kind in KINDS}
    return [
        Claim(
            f"Plain networks of {deep} layers fit worse than those of {shallow}; residual ones don't",
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
