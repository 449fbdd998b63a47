"""The rows of batches: their records in order, and the transforms of their images."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int64, UInt32

from flaxres.data.balance import Balance
from flaxres.data.decode import Transform
from flaxres.data.order import training_ids

IDS_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class Rows:
    """A global batch to load.

    Attributes:
      positions: position of each row.
      records: record number of each row; -1 is padding, with weight 0.
      transform: decodes and crops the images.
      replace: replace an image that can't be decoded by the next record that can; otherwise it
        becomes padding.
    """

    positions: UInt32[np.ndarray, " batch"]
    records: Int64[np.ndarray, " batch"]
    transform: Transform
    replace: bool


def training_rows(
    size: int,
    batch: int,
    seed: int,
    start: int,
    stop: int,
    transform: Callable[[int], Transform],
    repeats: int = 1,
    balance: Balance | None = None,
) -> Iterator[Rows]:
    """Iterates over the batches of training.

    Epochs follow each other without a gap, each in another order. A batch may contain the end of
    one epoch and the start of the next.

    Args:
      size: number of records of the dataset.
      batch: number of samples of a step.
      seed: seed of the run.
      start: the first step.
      stop: the step after the last one.
      transform: returns the transform of a step.
      repeats, balance: see `flaxres.data.order.training_ids`.

    Yields:
      The rows of each step.

    Examples:
      >>> from flaxres.data.decode import CentreCrop
      >>> batches = list(training_rows(6, 4, 0, 0, 3, lambda step: CentreCrop(8, 8)))
      >>> sorted(record for rows in batches for record in rows.records.tolist())
      [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    """
    block = max(IDS_AT_ONCE // batch, 1)
    for first in range(start, stop, block):
        end = min(first + block, stop)
        positions = np.arange(first * batch, end * batch, dtype=np.uint32).reshape(-1, batch)
        records = training_ids(positions, size, seed, batch, repeats, balance).astype(np.int64)
        for i, step in enumerate(range(first, end)):
            yield Rows(positions[i], records[i], transform(step), True)


def evaluation_rows(size: int, batch: int, transform: Transform) -> Iterator[Rows]:
    """Iterates over the batches of an evaluation: every record once, in order.

    Args:
      size: number of records of the dataset.
      batch: number of rows of a batch; the last batch is padded.
      transform: decodes and crops the images.

    Yields:
      The rows of each batch.

    Examples:
      >>> from flaxres.data.decode import CentreCrop
      >>> [rows.records.tolist() for rows in evaluation_rows(5, 3, CentreCrop(8, 8))]
      [[0, 1, 2], [3, 4, -1]]
    """
    for start in range(0, size, batch):
        positions = np.arange(start, start + batch, dtype=np.uint32)
        records = np.where(positions < size, positions.astype(np.int64), -1)
        yield Rows(positions, records, transform, False)
