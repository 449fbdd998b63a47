"""Command lines of the benchmarks and tools, how figures are printed, and those of many runs."""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the option `--json`; the description keeps its line breaks."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return made


def show(figures: Mapping[str, Any], as_json: bool, spec: str = ".3f") -> None:
    """Prints figures as JSON, or one a line with a format."""
    lines = (f"{name}: {value:{spec}}" for name, value in figures.items())
    print(json.dumps(figures) if as_json else "\n".join(lines))


def spread(top1: Sequence[float]) -> dict[str, Any]:
    """Returns accuracies with their mean and sample standard deviation, None for a single one.

    Examples:
      >>> spread([0.5, 0.75])["mean"], spread([0.5])["deviation"]
      (0.625, None)
    """
    deviation = statistics.stdev(top1) if len(top1) > 1 else None
    return {"top1": list(top1), "mean": statistics.fmean(top1), "deviation": deviation}
