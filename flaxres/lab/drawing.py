"""Lines and bands of the lab's figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Okabe & Ito's palette, which colour-blind readers tell apart; lines and markers differ as well.
STYLES: Mapping[str, dict[str, Any]] = {
    "plain": {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    "residual": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "preactivation": {"color": "#009E73", "linestyle": "-.", "marker": "^"},
    "dense": {"color": "#CC79A7", "linestyle": ":", "marker": "D"},
}


def band(axes: Any, x: Any, curves: Sequence[Any], **style: Any) -> None:
    """Draws the median of several curves as a line, and a band from the smallest to the largest.

    Args:
      axes: of matplotlib.
      x: positions, shared by the curves.
      curves: one a seed; gaps are nan.
      **style: of the line, with its `color`.
    """
    values = np.asarray(curves, float)
    if len(values) > 1:
        low, high = values.min(0), values.max(0)
        axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
    axes.plot(x, np.median(values, 0), **style)


def over_seeds(results: Sequence[Any]) -> str:
    """Returns a title's second line, which says what the bands are; '' for one seed."""
    return f"\n{len(results)} seeds: median, smallest and largest" if len(results) > 1 else ""
