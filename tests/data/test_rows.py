"""Rows of batches: padding and repeated samples."""

import numpy as np
import pytest

from flaxres.data.rows import training_rows
from flaxres.data.source import Source
from tests.data.loading import AS_THEY_ARE, evaluation


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 63, 64, 65, 70])
def test_fault_24_evaluation_visits_every_record_once_whatever_the_batch(size: int) -> None:
    for batch in (1, 8, 64):
        records = np.concatenate([rows.records for rows in evaluation(size, batch)])
        assert len(records) % batch == 0
        np.testing.assert_array_equal(records[records >= 0], np.arange(size))


def test_repeated_samples_share_their_batch_and_their_neighbours_differ(digits: Source) -> None:
    sampled = []
    for rows in training_rows(1297, 24, 0, 0, 200, lambda step: AS_THEY_ARE, repeats=3):
        records = rows.records.reshape(3, 8)
        np.testing.assert_array_equal(records[0], records[1])
        np.testing.assert_array_equal(records[0], records[2])
        assert (rows.records[::2] != rows.records[1::2]).all()
        assert len(np.unique(rows.positions)) == 24, "each is augmented by its position"
        sampled += records[0].tolist()
    assert sorted(sampled[:1297]) == list(range(1297))
    plain = next(training_rows(1297, 8, 0, 0, 1, lambda step: AS_THEY_ARE))
    np.testing.assert_array_equal(
        next(training_rows(1297, 24, 0, 0, 1, lambda step: AS_THEY_ARE, 3)).records[:8],
        plain.records,
    )
