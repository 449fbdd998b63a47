"""Draws the curves of a run."""

import pathlib
from typing import Any

from flaxres import figures
from flaxres.paths import replacing
from flaxres.training.metrics import read_metrics
from flaxres.training.workdir import CURVES

# Blue and orange of Okabe & Ito's palette, which colour-blind readers tell apart.
BLUE, ORANGE = "#0072B2", "#D55E00"


def draw_curves(workdir: pathlib.Path, title: str) -> None:
    """Draws loss, top-1 error and learning rate by epoch, from metrics.jsonl, as curves.png."""
    rows = read_metrics(workdir)
    plt = figures.pyplot()
    figure, (loss, error, rate) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")

    _plot(loss, rows, "train/loss", "training", BLUE)
    _plot(loss, rows, "eval/loss", "evaluation", ORANGE, marker="o")
    _plot(error, rows, "train/top1", "training, augmented", BLUE, error=True)
    _plot(error, rows, "eval/top1", "evaluation", ORANGE, marker="o", error=True)
    _plot(rate, rows, "train/learning_rate", None, BLUE)

    loss.set(title="Loss", xlabel="epoch", ylabel="cross-entropy, nats")
    error.set(title="Top-1 error", xlabel="epoch", ylabel="error, %")
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
    error: bool = False,
) -> None:
    """Plots a metric by epoch; with `error`, an accuracy as an error in percent."""
    points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
    values = [100 * (1 - value) if error else value for _, value in points]
    if len(points) < 10:
        marker = "o"  # a line through one point can't be seen
    epochs = [epoch for epoch, _ in points]
    axes.plot(epochs, values, color=colour, label=label, marker=marker, markersize=3)
