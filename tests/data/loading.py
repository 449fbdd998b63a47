"""Loading of small datasets, for tests of the loader."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from flaxres.data.decode import CentreCrop
from flaxres.data.loader import Loader, Speed
from flaxres.data.rows import Rows, evaluation_rows, training_rows
from flaxres.data.source import Source
from flaxres.training.mesh import data_mesh, split

AS_THEY_ARE = CentreCrop(8, 8)


def training(size: int, batch: int, seed: int, start: int, stop: int) -> Iterator[Rows]:
    return training_rows(size, batch, seed, start, stop, lambda step: AS_THEY_ARE)


def evaluation(size: int, batch: int) -> Iterator[Rows]:
    return evaluation_rows(size, batch, AS_THEY_ARE)


def load(
    source: Source, rows: Iterator[Rows], devices: int = 8, threads: int = 2, prefetch: int = 4
) -> list[dict[str, np.ndarray]]:
    with Loader(source, rows, split(data_mesh(devices)), Speed(threads, 0, prefetch)) as loader:
        return [{name: np.asarray(array) for name, array in batch.items()} for batch in loader]


class Damaged:
    """Records, one of which can't be read or is not an image."""

    def __init__(self, records: Any, bad: object) -> None:
        self.records, self.bad = records, bad

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        if index == 5:
            if isinstance(self.bad, Exception):
                raise self.bad
            return self.records[index] | {"image": self.bad}
        return self.records[index]
