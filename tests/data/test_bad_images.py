"""Images that can't be read or decoded are named, replaced or left out."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from flaxres.data.loader import Loader, Speed
from flaxres.data.order import sample_ids
from flaxres.data.resident import resident
from flaxres.data.rows import Rows
from flaxres.data.source import Source
from flaxres.errors import InputError
from flaxres.serving.crop import centre_crop
from flaxres.training.mesh import data_mesh, replicated, split
from tests.data.loading import AS_THEY_ARE, Damaged, evaluation, load, training


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"text", "this is no JPEG"),
        (OSError("torn"), "can't be read .*torn"),
        (b"", "the file is empty"),
    ],
)
def test_what_can_not_be_read_is_named(digits: Source, bad: object, reason: str) -> None:
    damaged = dataclasses.replace(digits, records=Damaged(digits.records, bad))
    with pytest.raises(InputError, match=rf"digits/train record 5.*{reason}"):
        load(damaged, evaluation(16, 8))
    with pytest.raises(InputError, match="record 5"):
        resident(damaged, AS_THEY_ARE, replicated(data_mesh(1)), Speed(2))


def test_an_image_that_can_not_be_decoded_is_replaced_in_training_and_left_out_in_evaluation(
    digits: Source,
) -> None:
    damaged = dataclasses.replace(digits, records=Damaged(digits.records, b"text"))
    said: list[str] = []

    def given(rows: Iterator[Rows]) -> list[dict[str, np.ndarray]]:
        with Loader(damaged, rows, split(data_mesh(1)), Speed(2), "skip", said.append) as loader:
            batches = [
                {name: np.asarray(array) for name, array in batch.items()} for batch in loader
            ]
        assert list(loader.skipped) == [5]
        return batches

    (first, _) = given(evaluation(16, 8))
    assert first["weight"].tolist() == [1, 1, 1, 1, 1, 0, 1, 1]
    assert not first["image"][5].any()
    everything = given(training(1297, 1297, 0, 0, 2))
    for batch in everything:
        assert (batch["weight"] == 1).all()
        ids = sample_ids(batch["position"], 1297, 0)
        stand_in, label = digits.read(6)
        np.testing.assert_array_equal(
            batch["image"][ids == 5][0], centre_crop(stand_in, 8, 8, "bilinear")
        )
        assert batch["label"][ids == 5] == label
    assert len(said) == 2, "once a loader, however often it comes"
    assert "digits/train record 5 (" in said[0]


def test_a_dataset_of_nothing_but_bad_images_is_refused(digits: Source) -> None:
    class Bad(Damaged):
        def __getitem__(self, index: int) -> Any:
            return self.records[index] | {"image": b"text"}

    damaged = dataclasses.replace(digits, records=Bad(digits.records, None))
    with pytest.raises(InputError, match="100 images after record .* can't be decoded"):
        with Loader(
            damaged,
            training(1297, 8, 0, 0, 2),
            split(data_mesh(1)),
            Speed(2),
            "skip",
            lambda line: None,
        ) as loader:
            list(loader)
