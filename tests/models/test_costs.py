"""The table of costs is what the networks have."""

import pytest

from flaxres.models.costs import cost, counted, table
from flaxres.models.registry import list_models

NAMES = list_models()


def test_the_table_has_every_network() -> None:
    assert list(table()) == NAMES


@pytest.mark.parametrize("name", ["resnet9", "resnet18", "regnetx_002", "convnext_atto"])
def test_a_row_is_what_its_network_has(name: str) -> None:
    assert cost(name) == counted(name)


@pytest.mark.slow
def test_one_row_in_eight_is_what_its_network_has() -> None:
    assert {name: cost(name) for name in NAMES[::8]} == {name: counted(name) for name in NAMES[::8]}


def test_another_size_is_counted() -> None:
    at_64 = cost("resnet18", 64)
    assert at_64 == counted("resnet18", 64)
    assert at_64.parameters == cost("resnet18").parameters
    classifier = 512 * 1000
    assert (cost("resnet18").macs - classifier) * 64**2 == (at_64.macs - classifier) * 224**2
