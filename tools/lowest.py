"""Prints the lower bounds of the dependencies as constraints for pip.

    python -m tools.lowest > lowest.txt
    pip install -c lowest.txt -e '.[train]' pytest pytest-xdist hypothesis && pytest

An installation of exactly these versions shows whether the bounds hold.
"""

import pathlib
import tomllib

ROOT = pathlib.Path(__file__).parents[1]
EXTRAS = ("train", "serve")


def constraints() -> list[str]:
    """Returns `name==version` for each requirement of the package and of its extras `EXTRAS`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"], *(line for name in EXTRAS for line in extras[name])]
    return [line.replace(">=", "==") for line in requirements]


if __name__ == "__main__":
    print("\n".join(constraints()))
