"""Writes `docs/modules.md`, a table of every module: `python -m tools.module_table [--check]`.

Each module has a line with the first sentence of its docstring, and each package a heading with
the sentence of its `__init__.py`. `--check` writes nothing and fails if the page would change.
"""

import argparse
import ast
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "modules.md"
INTRODUCTION = """\
<!-- written by `python -m tools.module_table` -->

# Modules

The first sentence of every module's docstring. [Architecture](architecture.md) describes how the
packages depend on each other, and the way of a config and of a batch through them. Modules that
start with an underscore serve their own package alone.
"""


def sentence(path: pathlib.Path) -> str:
    """Returns the first sentence of a module's docstring, on one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s+(?=[A-Z`])", paragraph)[0].replace("|", "\\|")


def package(folder: pathlib.Path) -> str:
    """Returns the heading, the sentence and the table of a package."""
    name = folder.relative_to(ROOT).as_posix()
    modules = sorted(path for path in folder.glob("*.py") if path.stem[:2] != "__")
    rows = [f"| `{path.stem}` | {sentence(path)} |" for path in modules]
    head = f"## `{name}`\n\n{sentence(folder / '__init__.py')}\n"
    return "\n".join([head, "| module | content |", "|---|---|", *rows]) + "\n"


def page() -> str:
    """Returns the content of the page."""
    packages = sorted(path.parent for path in (ROOT / "flaxres").rglob("__init__.py"))
    return "\n".join([INTRODUCTION, *map(package, packages)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if it differs")
    chosen = parser.parse_args()
    content = page()
    if not chosen.check:
        PAGE.write_text(content, encoding="utf-8")
    elif content != PAGE.read_text(encoding="utf-8"):
        sys.exit(f"{PAGE.relative_to(ROOT)} is out of date: run python -m tools.module_table")


if __name__ == "__main__":
    main()
