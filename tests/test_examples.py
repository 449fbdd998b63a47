"""Examples in docstrings run and print what they say."""

import doctest
import importlib

import pytest

MODULES = (
    "flaxres.config.check",
    "flaxres.config.files",
    "flaxres.config.recipes",
    "flaxres.config.schema",
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str) -> None:
    result = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.IGNORE_EXCEPTION_DETAIL
    )
    assert result.attempted > 0
    assert result.failed == 0
