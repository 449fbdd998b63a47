"""Labels that are not numbers of classes are refused, and never train as another class."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from flaxres.data import labels
from flaxres.data.labels import require_labels
from flaxres.data.loader import Speed
from flaxres.data.resident import resident
from flaxres.data.source import Source
from flaxres.errors import InputError
from flaxres.training.mesh import data_mesh, replicated
from tests.data.loading import AS_THEY_ARE, evaluation, load, training


class Relabelled(Sequence[Any]):
    """Records of which some have another label."""

    def __init__(self, records: Sequence[Any], changed: dict[int, int]) -> None:
        self.records, self.changed = records, changed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        record = dict(self.records[index])
        return {**record, "label": self.changed.get(index, record["label"])}


def relabelled(source: Source, changed: dict[int, int]) -> Source:
    return dataclasses.replace(source, records=Relabelled(source.records, changed))


@pytest.mark.parametrize("label", [-1, 10, 1000])
def test_a_label_out_of_range_is_refused_where_it_is_read(digits: Source, label: int) -> None:
    wrong = relabelled(digits, {5: label})
    match = rf"digits/train record 5 \(.*png\) has label {label}: the rule is 0 to 9"
    for rows in (evaluation(16, 8), training(1297, 1296, 0, 0, 1)):
        with pytest.raises(InputError, match=match):
            load(wrong, rows)
    with pytest.raises(InputError, match=match):
        resident(wrong, AS_THEY_ARE, replicated(data_mesh(1)), Speed(2))


def test_labels_out_of_range_are_refused_when_a_run_starts(
    digits: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_labels(digits)
    wrong = relabelled(digits, {7: -1, 300: 10, 1296: 11})
    match = r"3 of 1,297 labels read of digits/train .*: the first is -1 in digits/train record 7 "
    with pytest.raises(InputError, match=match):
        require_labels(wrong)
    # Of large splits a sample is read.
    monkeypatch.setattr(labels, "ALL", 1000)
    with pytest.raises(InputError, match=r"of 649 labels read"):
        require_labels(relabelled(digits, dict.fromkeys(range(1297), -1)))
