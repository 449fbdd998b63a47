"""Examples in docstrings run and print what they say, and every exported name has one."""

import doctest
import importlib
import inspect
import pathlib
import re
import types
from typing import Any

import pytest

import flaxres

ROOT = pathlib.Path(__file__).parents[1]
WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "flaxres").rglob("*.py")
    if re.search(r"^\s*>>> ", path.read_text(), re.MULTILINE)
)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module_run(name: str) -> None:
    result = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.IGNORE_EXCEPTION_DETAIL
    )
    assert result.attempted > 0
    assert result.failed == 0


def documented() -> dict[str, Any]:
    """Returns the public names of `flaxres`, and those of the reference pages.

    The results of the lab's experiments are records of arrays, with nothing to call.
    """
    names = {f"flaxres.{name}" for name in flaxres.__all__}
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        names |= set(re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE))
    objects = {}
    for name in sorted(names):
        if name.startswith("flaxres.lab.") and name.endswith(".Result"):
            continue
        module, _, attribute = name.rpartition(".")
        objects[name] = getattr(importlib.import_module(module), attribute)
    return objects


@pytest.mark.parametrize("name", documented())
def test_an_exported_name_has_a_docstring_with_an_example(name: str) -> None:
    value = documented()[name]
    assert not isinstance(value, types.ModuleType)
    assert ">>> " in (inspect.getdoc(value) or ""), f"{name} has no example"
