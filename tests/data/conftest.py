"""The bundled digits, prepared."""

import pytest

from flaxres.data.datasets import open_or_prepare
from flaxres.data.source import Source


@pytest.fixture
def digits(data_dir: str) -> Source:
    return open_or_prepare("digits", ["train"], data_dir=data_dir)[0]
