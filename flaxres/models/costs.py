"""Costs of the networks by name: counted, or from the table that comes with the package."""

import csv
import functools
import pathlib
from typing import NamedTuple

from flaxres.models.count import multiply_accumulates, parameters
from flaxres.models.registry import create_model
from flaxres.models.summary import usual_size

TABLE = pathlib.Path(__file__).with_name("costs.csv")


class Cost(NamedTuple):
    """Cost of a network for one image.

    Attributes:
      parameters: number of trainable parameters.
      macs: multiply-accumulates of inference.
      pixels: of a side of the image.
    """

    parameters: int
    macs: int
    pixels: int


def counted(name: str, pixels: int | None = None) -> Cost:
    """Counts the cost of a network; None is the usual size of its images."""
    # Under a scan the trace of a deep network is short, and the counts are the same.
    model = create_model(name, scan_blocks=True)
    pixels = pixels or usual_size(model)
    return Cost(parameters(model), multiply_accumulates(model, pixels), pixels)


@functools.cache
def table() -> dict[str, Cost]:
    """Returns the costs at the usual sizes, which `tools/cost_table.py` counted."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    return {name: Cost(*map(int, figures)) for name, *figures in rows}


def cost(name: str, pixels: int | None = None) -> Cost:
    """Returns the cost of a network, from the table where it has it.

    Args:
      name: of the network.
      pixels: of a side of the image; None is the usual size.

    Examples:
      >>> cost("resnet50")
      Cost(parameters=25557032, macs=4089184256, pixels=224)
    """
    known = table().get(name)
    if known is not None and pixels in (None, known.pixels):
        return known
    return counted(name, pixels)
