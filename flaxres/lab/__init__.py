"""Why skip connections work: experiments, each of which returns its numbers, and draws, tables and saves them.

`EXPERIMENTS` has them by name; `flaxres lab NAME --out DIR` runs them from the shell.
"""

from collections.abc import Mapping

from flaxres.lab import block, degradation, features, gradients, landscape, lesion, paths
from flaxres.lab.report import Experiment

EXPERIMENTS: Mapping[str, Experiment] = {
    "block": block.EXPERIMENT,
    "gradients": gradients.EXPERIMENT,
    "degradation": degradation.EXPERIMENT,
    "lesion": lesion.EXPERIMENT,
    "paths": paths.EXPERIMENT,
    "features": features.EXPERIMENT,
    "landscape": landscape.EXPERIMENT,
}
