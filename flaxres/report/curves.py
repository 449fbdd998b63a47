"""Draws the curves of runs, and reliability diagrams, as SVG for a page."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flaxres import figures

# Okabe & Ito's palette, which colour-blind readers tell apart, on light and on dark paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Points of a curve. Of longer ones, neighbours are averaged.
POINTS = 300
# Drawn in the colour of the page's text, whichever that is.
INK = "#123456"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "flaxres",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "grid.color"), INK),
}

# Title, label of the axis, metrics with the part of the run they are of, and their form.
PANELS: tuple[tuple[str, str, tuple[str, ...], Callable[[Any], Any]], ...] = (
    ("Loss", "cross-entropy, nats", ("train/loss", "eval/loss"), lambda value: value),
    ("Top-1 error", "%", ("train/top1", "eval/top1"), lambda value: 100 * (1 - value)),
    (
        *("Mean average precision", "%", ("eval/mean_average_precision",)),
        lambda value: 100 * value,
    ),
    ("Learning rate", "", ("train/learning_rate",), lambda value: value),
    ("Gradient norm", "", ("train/gradient_norm",), lambda value: value),
    ("Throughput", "images/s", ("train/images_per_second",), lambda value: value),
    ("Waiting for input", "% of the time", ("train/input_stall_percent",), lambda value: value),
)
# Panels of metrics that only some runs have.
OPTIONAL = ("Mean average precision",)


def draw_curves(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[tuple[str, str]]:
    """Returns the title and the SVG of each panel.

    Curves of training are solid lines, those of evaluation dashed ones with points.

    Args:
      runs: the metrics of each run, in the order of `COLOURS`.
    """
    return [
        (title, _draw(unit, [_curves(rows, names, form) for rows in runs]))
        for title, unit, names, form in PANELS
        if title not in OPTIONAL
        or any(name in row for rows in runs for row in rows for name in names)
    ]


def _curves(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], form: Callable[[Any], Any]
) -> list[tuple[Any, Any]]:
    """Returns epochs and values of each metric."""
    curves = []
    for name in names:
        points = [(row.get("epoch"), row.get(name)) for row in rows]
        points = [point for point in points if all(map(_is_finite, point))]
        x, y = np.array(points, np.float64).reshape(-1, 2).T
        curves.append((averaged(x), averaged(form(y))))
    return curves


def _is_finite(value: Any) -> bool:
    """Returns True for a number that can be drawn: a line of the log may hold anything."""
    return isinstance(value, int | float) and math.isfinite(value)


def averaged(values: Any) -> Any:
    """Returns at most `POINTS` values: the means of groups of neighbours of equal size.

    Examples:
      >>> averaged(np.arange(2 * POINTS))[:3]
      array([0.5, 2.5, 4.5])
    """
    size = -(-len(values) // POINTS) or 1
    groups = [values[start : start + size] for start in range(0, len(values), size)]
    return np.array([group.mean() for group in groups])


def _draw(unit: str, runs: Sequence[Sequence[tuple[Any, Any]]]) -> str:
    """Draws one panel."""
    plt = figures.pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.2, 2.7), layout="constrained")
        for number, curves in enumerate(runs):
            colour = COLOURS[number % len(COLOURS)]
            for style, marker, (x, y) in zip(("-", "--"), ("", "o"), curves, strict=False):
                # A line through one point can't be seen.
                shown = marker if len(x) <= 40 and marker else ("o" if len(x) < 3 else "")
                axes.plot(x, y, style, color=colour, marker=shown, markersize=3, linewidth=1.4)
        axes.set(xlabel="epoch", ylabel=unit)
        # A curve of zeros would have ticks of no meaning.
        axes.set_ylim(0, max(axes.get_ylim()[1], 1) if unit.startswith("%") else None)
        axes.grid(alpha=0.15)
        return svg(figure)


def draw_reliability(calibration: Mapping[str, Sequence[float | None]], colour: str) -> str:
    """Returns the SVG of a reliability diagram: accuracy by confidence, and images by confidence.

    Args:
      calibration: `edges`, `counts`, `confidence` and `accuracy` of the bins.
      colour: of the bars.
    """
    plt = figures.pyplot()
    edges = np.array(calibration["edges"], np.float64)
    counts = np.array(calibration["counts"], np.float64)
    accuracy = np.array(calibration["accuracy"], np.float64)  # None becomes NaN
    confidence = np.array(calibration["confidence"], np.float64)
    centres, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    with plt.rc_context(STYLE):
        figure, (upper, lower) = plt.subplots(
            2, 1, figsize=(4.2, 3.6), layout="constrained", sharex=True, height_ratios=(3, 1)
        )
        upper.bar(centres, np.nan_to_num(100 * accuracy), 0.92 * width, color=colour, alpha=0.75)
        upper.plot([0, 1], [0, 100], ":", color=INK, linewidth=1)
        upper.plot(confidence, 100 * accuracy, "o", color=INK, markersize=3)
        upper.set(ylabel="accuracy, %", ylim=(0, 100), xlim=(0, 1))
        lower.bar(centres, counts, 0.92 * width, color=colour, alpha=0.75)
        lower.set(xlabel="confidence", ylabel="images")
        return svg(figure)


def svg(figure: Any) -> str:
    """Returns a figure as SVG that fits into HTML, takes its width and its colour of text."""
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # The page gives the size: the view box alone keeps the proportions.
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    # HTML needs no namespaces, and several figures would have the same names of groups.
    text = re.sub(r' (xmlns(:xlink)?="[^"]*"|id="[A-Za-z0-9.]+_\d+")', "", text)
    return re.sub(r"\n\s*", "\n", text)
