"""A small NNX network that tests may call, but not change, and its Linen form."""

import pytest

import flaxres
import flaxres.nnx
from tests.nnx.small import SMALL, network


@pytest.fixture(scope="module")
def model() -> flaxres.nnx.ResNet:
    """A network that tests may call, but not change."""
    return network()


@pytest.fixture(scope="module")
def linen() -> flaxres.ResNet:
    return flaxres.ResNet(**SMALL)
