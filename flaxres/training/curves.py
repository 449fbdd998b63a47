"""Draws the curves of a run."""

import pathlib
from collections.abc import Callable
from typing import Any

from flaxres import figures
from flaxres.paths import replacing
from flaxres.training.metrics import read_metrics
from flaxres.training.workdir import CURVES

# Blue and orange of Okabe & Ito's palette, which colour-blind readers tell apart.
BLUE, ORANGE = "#0072B2", "#D55E00"
PRECISION = "eval/mean_average_precision"


def draw_curves(workdir: pathlib.Path, title: str) -> None:
    """Draws loss, top-1 error and learning rate by epoch, from metrics.jsonl, as curves.png.

    Where images have any number of labels, the mean average precision takes the place of the error.
    """
    rows = read_metrics(workdir)
    plt = figures.pyplot()
    figure, (loss, error, rate) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")

    _plot(loss, rows, "train/loss", "training", BLUE)
    _plot(loss, rows, "eval/loss", "evaluation", ORANGE, marker="o")
    if any(PRECISION in row for row in rows):
        _plot(error, rows, PRECISION, "evaluation", ORANGE, "o", lambda value: 100 * value)
        error.set(title="Mean average precision", xlabel="epoch", ylabel="precision, %")
    else:
        _plot(error, rows, "train/top1", "training, augmented", BLUE, "", _error)
        _plot(error, rows, "eval/top1", "evaluation", ORANGE, "o", _error)
        error.set(title="Top-1 error", xlabel="epoch", ylabel="error, %")
    _plot(rate, rows, "train/learning_rate", None, BLUE)

    loss.set(title="Loss", xlabel="epoch", ylabel="cross-entropy, nats")
    rate.set(title="Learning rate", xlabel="epoch", ylabel="learning rate")
    for axes in (loss, error, rate):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    for axes in (loss, error):
        axes.legend()
    figure.suptitle(title)
    with replacing(workdir / CURVES) as part:
        figure.savefig(part, dpi=110, format="png")
    plt.close(figure)


def _plot(
    axes: Any,
    rows: list[dict[str, Any]],
    name: str,
    label: str | None,
    colour: str,
    marker: str = "",
    scale: Callable[[float], float] = lambda value: value,
) -> None:
    """Plots a metric by epoch, each value as `scale` gives it."""
    points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
    values = [scale(value) for _, value in points]
    if len(points) < 10:
        marker = "o"  # a line through one point can't be seen
    epochs = [epoch for epoch, _ in points]
    axes.plot(epochs, values, color=colour, label=label, marker=marker, markersize=3)


def _error(accuracy: float) -> float:
    """Returns the error in percent."""
    return 100 * (1 - accuracy)
