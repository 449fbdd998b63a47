"""Batch norm in place of skip connections, in stacks of 20 to 110 dense layers."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from flaxres import figures
from flaxres.lab.claims import Claim
from flaxres.lab.drawing import STYLES, band, over_seeds
from flaxres.lab.report import Experiment, Say, Settings
from flaxres.lab.stacks import Kind, Stack
from flaxres.lab.tuned import Scores, table, tuned_all

SHALLOW, MIDDLE, DEEP = 20, 56, 110
DEPTHS, WIDTH = (SHALLOW, 32, MIDDLE, DEEP), 32
# (kind, with norm) -> its name and the name of its style.
CASES: Mapping[tuple[Kind, bool], tuple[str, str]] = {
    ("plain", False): ("plain", "plain"),
    ("plain", True): ("plain, batch norm", "dense"),
    ("residual", False): ("residual", "preactivation"),
    ("residual", True): ("residual, batch norm", "residual"),
}


@dataclasses.dataclass(frozen=True)
class Result:
    """Stacks of layers of 32 units.

    Attributes:
      scores: (name of the case, depth) -> loss and accuracy.
    """

    scores: Scores


def run(settings: Settings, say: Say) -> list[Result]:
    """Trains the stacks, all with He's initialisation.

    Args:
      settings: uses `seed`, `seeds` and `scale`.
      say: receives lines of progress.

    Returns:
      One result a seed. All seeds are trained at once.
    """
    stacks = {
        (name, depth): Stack(kind, depth, norm, init="he", width=WIDTH)
        for (kind, norm), (name, _) in CASES.items()
        for depth in DEPTHS
    }
    return [Result(scores) for scores in tuned_all(stacks, settings, say)]


def draw(results: Sequence[Result]) -> Any:
    """Draws accuracies by depth; returns a matplotlib figure."""
    plt = figures.pyplot()
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for name, style in CASES.values():
        top1 = [[100 * result.scores[name, depth].top1 for depth in DEPTHS] for result in results]
        band(axes, DEPTHS, top1, label=name, **STYLES[style])
    axes.set(xlabel="layers", ylabel="top-1, %", ylim=(0, 101), xscale="log")
    axes.set_xticks(DEPTHS, [str(depth) for depth in DEPTHS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.suptitle(
        "Batch norm and skip connections, He's initialisation, stacks of dense layers on digits"
        + over_seeds(results)
    )
    return figure


def rows(result: Result) -> list[dict[str, Any]]:
    """Returns one row for each stack."""
    return table(result.scores)


def claims(result: Result) -> list[Claim]:
    """Tests how deep a norm, a shortcut and both of them can train."""

    def top1(depth: int) -> list[float]:
        return [100 * result.scores[name, depth].top1 for name, _ in CASES.values()]

    bare, normed, *_ = top1(SHALLOW)
    _, plain, _, residual = top1(MIDDLE)
    _, _, alone, both = top1(DEEP)
    return [
        Claim(
            f"Batch norm helps {SHALLOW} plain layers to learn",
            "top-1 of plain stacks, %: without it, with it",
            bare,
            normed,
            normed > bare + 1,
        ),
        Claim(
            f"It does not replace skip connections at {MIDDLE} layers",
            "top-1 with batch norm, %",
            plain,
            residual,
            plain < 50 and residual > 90,
        ),
        Claim(
            f"Nor do they replace it at {DEEP} layers",
            "top-1 of residual stacks, %: without batch norm, with it",
            alone,
            both,
            alone < 50 and both > 90,
        ),
    ]


EXPERIMENT = Experiment(
    "batch norm in place of skip connections, 20 to 110 layers", run, draw, rows, claims
)
