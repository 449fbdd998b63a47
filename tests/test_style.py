"""Limits of length, and openings of docstrings, for all Python files of the project."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(
    path
    for folder in ("flaxres", "configs", "benchmarks", "tools", "tests")
    for path in (ROOT / folder).rglob("*.py")
)
OPENINGS = {"Of", "What", "Whether", "Where", "How", "Whose"}
LONGEST_FILE, LONGEST_FUNCTION = 400, 60
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_keeps_to_the_limits(path: pathlib.Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST_FILE, (
        f"move what belongs together to a module of its own: {LONGEST_FILE} lines are the limit"
    )
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, (
                f"{node.name}: divide it: {LONGEST_FUNCTION} lines are the limit"
            )
        if isinstance(node, DOCUMENTED) and (docstring := ast.get_docstring(node)):
            assert "Examples:\n\n" not in docstring, "the documentation shows no example then"
            first = docstring.split()[0].strip(",.:;`")
            assert first not in OPENINGS, f"line {getattr(node, 'lineno', 1)}: {docstring[:60]}"
