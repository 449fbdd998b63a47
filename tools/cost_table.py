"""Writes `flaxres/models/costs.csv`: `python -m tools.cost_table [--check]`.

The table has the parameters and multiply-accumulates of every network at the usual size of its
images. It takes several minutes. `--check` writes nothing and fails if the table would change.
"""

import argparse
import csv
import io
import sys

from flaxres.models.costs import TABLE, Cost, counted
from flaxres.models.registry import list_models


def content() -> str:
    """Returns the table as CSV, counted anew."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *Cost._fields])
    writer.writerows([name, *counted(name)] for name in list_models())
    return text.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if it differs")
    chosen = parser.parse_args()
    counts = content()
    if not chosen.check:
        TABLE.write_text(counts, encoding="utf-8")
    elif counts != TABLE.read_text(encoding="utf-8"):
        sys.exit("flaxres/models/costs.csv is out of date: run python -m tools.cost_table")


if __name__ == "__main__":
    main()
