"""Width against depth at equal cost: where skip connections stop helping.

Stacks of dense layers that all cost the same multiply-accumulates, from wide and shallow to narrow
and deep. Shallow networks train without shortcuts as well.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from flaxres import figures
from flaxres.lab.claims import Claim
from flaxres.lab.drawing import STYLES, band, over_seeds
from flaxres.lab.report import Experiment, Say, Settings
from flaxres.lab.stacks import Kind, Stack
from flaxres.lab.tuned import Scores, table, tuned_all

KINDS: tuple[Kind, ...] = ("plain", "residual")
DEPTHS = (4, 8, 16, 32, 64)
COST = 40 * 64**2  # multiply-accumulates of the hidden layers, an image


@dataclasses.dataclass(frozen=True)
class Result:
    """Stacks of equal cost.

    Attributes:
      widths: depth -> width.
      scores: (kind, depth) -> loss and accuracy.
    """

    widths: Mapping[int, int]
    scores: Scores


def run(settings: Settings, say: Say) -> list[Result]:
    """Trains the stacks, with batch norm and He's initialisation.

    Args:
      settings: uses `seed`, `seeds` and `scale`.
      say: receives lines of progress.

    Returns:
      One result a seed. All seeds are trained at once.
    """
    widths = {depth: round(math.sqrt(COST / depth)) for depth in DEPTHS}
    stacks: dict[tuple[str, int], Stack] = {
        (kind, depth): Stack(kind, depth, norm=True, init="he", width=width)
        for kind in KINDS
        for depth, width in widths.items()
    }
    return [Result(widths, scores) for scores in tuned_all(stacks, settings, say)]


def draw(results: Sequence[Result]) -> Any:
    """Draws accuracies and losses by depth; returns a matplotlib figure."""
    plt = figures.pyplot()
    figure, (accuracy, loss) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    for kind in KINDS:
        scores = [[result.scores[kind, depth] for depth in DEPTHS] for result in results]
        top1 = [[100 * score.top1 for score in of_seed] for of_seed in scores]
        losses = [[max(score.loss, 1e-5) for score in of_seed] for of_seed in scores]
        band(accuracy, DEPTHS, top1, label=kind, **STYLES[kind])
        band(loss, DEPTHS, losses, label=kind, **STYLES[kind])
    accuracy.set(title="test split", ylabel="top-1, %", ylim=(0, 101))
    loss.set(title="training split", ylabel="loss, nats", yscale="log")
    names = [f"{depth}\n({width} wide)" for depth, width in results[0].widths.items()]
    for axes in (accuracy, loss):
        axes.set_xscale("log")
        axes.set_xticks(DEPTHS, names)
        axes.minorticks_off()
        axes.set(xlabel="layers")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(
        f"Width against depth: stacks of dense layers of {COST:,} multiply-accumulates"
        + over_seeds(results)
    )
    return figure


def rows(result: Result) -> list[dict[str, Any]]:
    """Returns one row for each stack."""
    return [row | {"width": result.widths[row["depth"]]} for row in table(result.scores)]


def claims(result: Result) -> list[Claim]:
    """Tests whether skip connections help deep networks, and only those."""

    def top1(depth: int) -> tuple[float, float]:
        plain, residual = (100 * result.scores[kind, depth].top1 for kind in KINDS)
        return plain, residual

    shallow, deep = DEPTHS[0], DEPTHS[-1]
    best_plain, best_residual = (
        100 * max(result.scores[kind, depth].top1 for depth in DEPTHS) for kind in KINDS
    )
    return [
        Claim(
            f"{shallow} wide layers learn as well without skip connections",
            "top-1, %",
            *top1(shallow),
            abs(top1(shallow)[0] - top1(shallow)[1]) < 1.5,
        ),
        Claim(
            f"{deep} narrow layers of the same cost learn with them, and not without",
            "top-1, %",
            *top1(deep),
            top1(deep)[0] < 50 and top1(deep)[1] > 90,
        ),
        Claim(
            "Where depth can be chosen, they win nothing on digits",
            "top-1 of the best depth, %",
            best_plain,
            best_residual,
            abs(best_residual - best_plain) < 1.5,
        ),
    ]


EXPERIMENT = Experiment("width against depth at equal cost", run, draw, rows, claims)
