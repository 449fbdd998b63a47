"""Command lines of the benchmarks and tools: the option `--json`, and how figures are printed."""

import argparse
import json
from collections.abc import Mapping
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
