"""Parquet files of the Hugging Face hub."""

import concurrent.futures
import json
import pathlib
import pickle
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.forms import write_parquet
from flaxres.cli import main
from flaxres.data.datasets import open_or_prepare
from flaxres.data.labels import require_labels
from flaxres.data.parquet import RowGroups
from flaxres.data.source import Source
from flaxres.errors import InputError
from tests.data.loading import evaluation, load
from tests.data.samples import encoded, photograph

IMAGES = [encoded(photograph(12 + i, 10), "PNG") for i in range(8)]
ROWS = [(f"{i}.png", data, (0, 1, 1, 0)[i % 4]) for i, data in enumerate(IMAGES)]


def opened(root: pathlib.Path, *splits: str, **options: Any) -> list[Source]:
    return open_or_prepare("parquet", splits, str(root), **options)


def labels_of(source: Source) -> list[int]:
    assert source.labels is not None
    return source.labels.tolist()


LAYOUTS = {
    "data/train-00000-of-00002.parquet": "data/train-00001-of-00002.parquet",
    "train-00000-of-00002-0123456789abcde.parquet": "train-00001-of-00002-edcba9876543210.parquet",
    "train/0000.parquet": "train/0001.parquet",
    "train/part-00000.parquet": "train/part-00001.parquet",
}


@pytest.mark.parametrize("first", LAYOUTS)
def test_splits_go_by_the_names_of_the_hub(tmp_path: pathlib.Path, first: str) -> None:
    write_parquet(tmp_path / LAYOUTS[first], ROWS[5:])
    write_parquet(tmp_path / first, ROWS[:5])
    write_parquet(tmp_path / first.replace("train", "test").replace("00002", "00001"), ROWS[:2])
    train, test = opened(tmp_path, "train", "test")
    assert train.classes == ("cat", "dog")
    assert [train.read(i) for i in range(8)] == [(data, label) for _, data, label in ROWS]
    assert [train.file_name(i) for i in range(8)] == [name for name, *_ in ROWS]
    assert len(test) == 2
    assert train.digest == test.digest


def test_the_digest_follows_the_files_and_not_their_times(tmp_path: pathlib.Path) -> None:
    digests = []
    for place, rows in (("a", ROWS), ("b", ROWS), ("c", [*ROWS[:7], ("x.png", IMAGES[0], 1)])):
        write_parquet(tmp_path / place / "train-00000-of-00001.parquet", rows)
        digests.append(opened(tmp_path / place)[0].digest)
    assert digests[0] == digests[1] != digests[2]


def test_row_groups_are_kept_within_the_budget(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "train-00000-of-00001.parquet"
    write_parquet(path, [(f"{i}.png", bytes(300_000), 0) for i in range(8)], group=1)
    (source,) = opened(tmp_path, cache_mib=1)
    cache: RowGroups = source.records.cache
    for i in (0, 1, 2, 2, 1, 0):
        source.read(i)
    assert cache.reads == 3
    source.read(3)  # takes the place of 2, which was not used for longest
    source.read(0)
    source.read(1)
    assert cache.reads == 4
    assert 900_000 <= cache.size <= 1 << 20
    source.read(2)
    assert cache.reads == 5
    small = RowGroups(1)
    for group in range(8):
        small.get(str(path), group, "image")
        assert 300_000 <= small.size < 400_000
    assert small.reads == 8


def test_threads_share_the_reading_of_a_row_group(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "train-00000-of-00001.parquet", ROWS, group=8)
    (source,) = opened(tmp_path)
    begun, read = threading.Event(), RowGroups._read

    def slow(*arguments: Any) -> Any:
        assert begun.wait(5)
        return read(*arguments)

    monkeypatch.setattr(RowGroups, "_read", slow)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        tasks = [pool.submit(source.read, i) for i in range(8)]
        begun.set()
        assert [task.result()[0] for task in tasks] == IMAGES
    assert source.records.cache.reads == 1


def test_a_pickled_source_leaves_the_row_groups_behind(tmp_path: pathlib.Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00001.parquet", [("a", bytes(1 << 20), 0)] * 2)
    (source,) = opened(tmp_path)
    source.read(0)
    data = pickle.dumps(source)
    assert len(data) < 10_000
    assert pickle.loads(data).read(1) == source.read(1)


def test_labels_are_checked_as_a_whole(tmp_path: pathlib.Path) -> None:
    labels = [0, 1, -1, None, 2, 1]
    rows = [(name, data, label) for (name, data, _), label in zip(ROWS, labels, strict=False)]
    write_parquet(tmp_path / "test-00000-of-00001.parquet", rows)
    (source,) = opened(tmp_path)
    assert labels_of(source) == [0, 1, -1, -1, 2, 1]
    with pytest.raises(InputError, match=r"3 of 6 labels .*first is -1 in parquet/test record 2 "):
        require_labels(source)


def test_images_without_bytes_go_the_way_of_bad_images(tmp_path: pathlib.Path) -> None:
    rows = [(name, None if i == 3 else data, label) for i, (name, data, label) in enumerate(ROWS)]
    write_parquet(tmp_path / "train-00000-of-00001.parquet", rows)
    with pytest.raises(InputError, match=r"record 3 \(3.png\): the file is empty; download or"):
        load(opened(tmp_path)[0], evaluation(8, 8))
    path = tmp_path / "b" / "train-00000-of-00001.parquet"
    write_parquet(path, [(name, None, label) for name, _, label in ROWS])
    with pytest.raises(InputError, match="holds paths of images without their bytes: write it"):
        opened(path.parent)


def test_slices_of_files_sorted_by_class_are_refused(tmp_path: pathlib.Path) -> None:
    rows = sorted(ROWS, key=lambda row: row[2])
    write_parquet(tmp_path / "train-00000-of-00001.parquet", rows)
    assert len(opened(tmp_path, "train")[0]) == 8
    with pytest.raises(InputError, match=r"'train\[:90%\]' of parquet would lack classes"):
        opened(tmp_path, "train[:90%]")


IMAGE, LABEL = {"_type": "Image"}, {"names": ["cat", "dog"], "_type": "ClassLabel"}


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"label": LABEL}, r"has 0 columns of type Image \(; all columns: image, label\)"),
        ({"image": IMAGE, "label": {"_type": "Value"}}, "has 0 columns of type ClassLabel"),
        ({"image": IMAGE, "label": IMAGE}, r"has 2 columns of type Image \(image, label;"),
        ({"image": LABEL, "label": IMAGE}, "column 'label' .* is of type int64: the rule is a st"),
        ({"image": None, "label": None}, "has 0 columns of type Image"),
        ([1], "can't be read as Parquet"),
    ],
)
def test_files_without_an_image_and_a_label_are_refused(
    tmp_path: pathlib.Path, features: Any, message: str
) -> None:
    write_parquet(tmp_path / "train-00000-of-00001.parquet", ROWS, features=features)
    with pytest.raises(InputError, match=message) as error:
        opened(tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_files_without_the_metadata_of_datasets_are_refused(tmp_path: pathlib.Path) -> None:
    pq.write_table(pa.table({"pixels": [1]}), tmp_path / "train-00000-of-00001.parquet")
    with pytest.raises(InputError, match="has 0 columns of type Image .*all columns: pixels"):
        opened(tmp_path)


def test_files_of_two_datasets_are_refused(tmp_path: pathlib.Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00001.parquet", ROWS)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", ROWS, classes=("dog", "cat"))
    with pytest.raises(InputError, match="train-00000.* other columns or classes than the first"):
        opened(tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 100, -9])
def test_a_cut_file_is_refused(tmp_path: pathlib.Path, keep: int) -> None:
    path = tmp_path / "train-00000-of-00001.parquet"
    write_parquet(path, ROWS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="train-00000.*can't be read as Parquet.*: it is cut"):
        opened(tmp_path)


def test_damage_that_comes_later_names_record_and_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "train-00000-of-00001.parquet"
    write_parquet(path, ROWS)
    (source,) = opened(tmp_path)
    path.unlink()
    message = r"parquet/train record 2 can't be read from .*train-00000.*, download or write its"
    with pytest.raises(InputError, match=message):
        source.read(2)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds no train-00000-of-00005.parquet or train/"),
        (
            ["train-00001-of-00003.parquet"],
            r"'train' .* lacks file 0 \(of 3.*; 2 are missing",
        ),
        (["a/train-00000-of-00001.parquet", "a/x.parquet"], "split 'a' has 2 files, and .*says 1"),
        (["images.parquet"], "images.parquet' belongs to no split: the rule is"),
        (["data/0000.parquet"], "0000.parquet' belongs to no split"),
    ],
)
def test_folders_without_splits_are_refused(
    tmp_path: pathlib.Path, files: list[str], message: str
) -> None:
    for name in files:
        write_parquet(tmp_path / name, ROWS)
    with pytest.raises(InputError, match=message):
        opened(tmp_path)


def test_an_empty_split_a_share_and_no_source_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match="data.name='parquet' needs data.source: the folder that"):
        open_or_prepare("parquet")
    with pytest.raises(InputError, match="data.source='/nothing' is not a folder: give the one"):
        open_or_prepare("parquet", source="/nothing")
    write_parquet(tmp_path / "train-00000-of-00001.parquet", ROWS)
    with pytest.raises(InputError, match="data.validation=0.1 with data.name='parquet'"):
        opened(tmp_path, validation=0.1)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", [])
    with pytest.raises(InputError, match="split 'test' .* is empty: choose another"):
        opened(tmp_path)


def test_the_data_commands(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_parquet(tmp_path / "train-00000-of-00001.parquet", [*ROWS[:6], ("6.png", b"text", 5)])
    where = ["parquet", "--source", str(tmp_path), "--json"]
    assert main(["data", "info", *where]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["splits"]["train"]["examples"] == 7
    assert facts["report"]["classes"] == {"train": {"cat": 3, "dog": 3}}
    assert facts["report"]["notes"] == ["1 labels of split 'train' are no numbers of classes"]
    assert main(["data", "verify", *where]) == 0
    assert main(["data", "verify", *where, "--decode"]) == 2
    assert "flaxres: parquet/train" in capfd.readouterr().err
    assert main(["data", "prepare", *where]) == 2
    assert "'parquet' is read in place and needs no preparation" in capfd.readouterr().err
    assert main(["data", "info", "parqet"]) == 2
    assert "unknown dataset 'parqet': did you mean parquet?" in capfd.readouterr().err
    assert np.asarray(facts["splits"]["train"]["bytes"]) > 0
