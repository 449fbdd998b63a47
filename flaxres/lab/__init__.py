"""Experiments on why skip connections work.

`EXPERIMENTS` has them by name. Each returns its numbers for every seed, draws them, and lists
them as a table.
`flaxres lab NAME --out DIR` runs them from the shell.
"""

from collections.abc import Mapping

from flaxres.lab import (
    block,
    degradation,
    features,
    gradients,
    landscape,
    lesion,
    norm,
    paths,
    width,
)
from flaxres.lab.report import Experiment

EXPERIMENTS: Mapping[str, Experiment] = {
    "block": block.EXPERIMENT,
    "gradients": gradients.EXPERIMENT,
    "degradation": degradation.EXPERIMENT,
    "width": width.EXPERIMENT,
    "norm": norm.EXPERIMENT,
    "lesion": lesion.EXPERIMENT,
    "paths": paths.EXPERIMENT,
    "features": features.EXPERIMENT,
    "landscape": landscape.EXPERIMENT,
}
