"""TFRecord files, read in place and without TensorFlow."""

import gzip
import json
import pathlib
from typing import Any

import pytest

from benchmarks.forms import write_tfrecord
from flaxres.cli import main
from flaxres.data import _index
from flaxres.data.datasets import describe, open_or_prepare
from flaxres.data.labels import require_labels
from flaxres.data.source import Source
from flaxres.errors import InputError
from tests.data.samples import encoded, photograph

IMAGES = [encoded(photograph(12 + i, 10), "PNG") for i in range(4)]
LABELS = [0, 1, 1, 2]


def tfds(data: bytes, label: int) -> dict[str, Any]:
    return {"image": data, "label": label, "file_name": b"some/file.png", "id": 7}


def slim(data: bytes, label: int) -> dict[str, Any]:
    """Returns the features that TensorFlow's models write for ImageNet."""
    return {
        "image/height": 10,
        "image/width": 12,
        "image/colorspace": b"RGB",
        "image/channels": 3,
        "image/class/label": label,
        "image/class/synset": b"n01440764",
        "image/class/text": b"tench, Tinca tinca",
        "image/format": b"JPEG",
        "image/filename": b"n01440764_1.JPEG",
        "image/encoded": data,
    }


def opened(root: pathlib.Path, *splits: str) -> list[Source]:
    return open_or_prepare("tfrecord", splits, str(root), str(root.parent / "prepared"))


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002", "train-00001-of-00002"),
        ("a-train.tfrecord-00000-of-00002", "a-train.tfrecord-00001-of-00002"),
        ("train-00000.tfrecord", "train-00001.tfrecord"),
        ("train/first.tfrecords", "train/second.tfrecords"),
        ("data/train-00000-of-00002.tfrecord", "data/train-00001-of-00002.tfrecord"),
    ],
)
@pytest.mark.parametrize("layout", [tfds, slim])
def test_records_are_read_in_the_order_of_the_files(
    tmp_path: pathlib.Path, names: tuple[str, str], layout: Any
) -> None:
    root = tmp_path / "a"
    write_tfrecord(root / names[0], [layout(IMAGES[i], LABELS[i]) for i in (0, 1, 2)])
    write_tfrecord(root / names[1], [layout(IMAGES[3], LABELS[3])])
    (train,) = opened(root)
    assert train.name == "tfrecord/train"
    assert [train.read(i) for i in range(4)] == list(zip(IMAGES, LABELS, strict=True))
    assert train.classes == ("0", "1", "2")
    assert train.file_name(3) == ("some/file.png" if layout is tfds else "n01440764_1.JPEG")
    assert train.file(3).endswith(names[1])


def test_labels_of_imagenet_begin_at_1(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "a"
    rows = list(zip(IMAGES, [3, 1, 1, 2], strict=True))
    write_tfrecord(root / "train-00000-of-00001", [slim(*row) for row in rows])
    write_tfrecord(root / "validation-00000-of-00001", [slim(*row) for row in rows[1:]])
    (root / "classes.txt").write_text("ant\nbee\ncow\n")
    for turn in range(2):  # the second time with the index
        train, validation = opened(root)
        assert [train.read(i)[1] for i in range(4)] == [2, 0, 0, 1], turn
        assert [validation.read(i)[1] for i in range(3)] == [0, 0, 1]
    assert train.classes == ("ant", "bee", "cow")
    notes = describe("tfrecord", str(root), str(tmp_path / "prepared"))["report"]["notes"]
    assert notes == ["labels are counted from 1 in the files: 1 is the first class"]
    # Those of TFDS begin at 0, also if no record is of the first class.
    write_tfrecord(tmp_path / "b" / "train-00000-of-00001", [tfds(*row) for row in rows])
    assert opened(tmp_path / "b")[0].read(0)[1] == 3


def test_a_file_may_be_empty(tmp_path: pathlib.Path) -> None:
    write_tfrecord(tmp_path / "a" / "train-00000-of-00002", [])
    write_tfrecord(tmp_path / "a" / "train-00001-of-00002", [tfds(IMAGES[0], 0)])
    (train,) = opened(tmp_path / "a")
    assert train.read(0) == (IMAGES[0], 0)
    assert train.file(0).endswith("train-00001-of-00002")


def test_labels_below_zero_are_refused_before_training(tmp_path: pathlib.Path) -> None:
    rows = [tfds(IMAGES[0], 1), tfds(IMAGES[1], -1)]
    write_tfrecord(tmp_path / "a" / "train-00000-of-00001", rows)
    with pytest.raises(InputError, match="1 of 2 labels .* the first is -1 in tfrecord/train"):
        require_labels(opened(tmp_path / "a")[0])


def test_a_label_that_is_no_number_of_a_class_is_refused(tmp_path: pathlib.Path) -> None:
    write_tfrecord(tmp_path / "a" / "train-00000-of-00001", [tfds(IMAGES[0], 2**62)])
    with pytest.raises(InputError, match="has the label 4,611,.*: the rule is 0 to 999,999"):
        opened(tmp_path / "a")


def test_the_index_is_kept_until_a_file_changes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a" / "train-00000-of-00001"
    write_tfrecord(path, [tfds(IMAGES[0], 0)])
    first = opened(tmp_path / "a")[0].digest
    with monkeypatch.context() as patched:
        patched.setattr(_index, "_index", None)
        assert opened(tmp_path / "a")[0].digest == first
    write_tfrecord(path, [tfds(IMAGES[0], 1)])
    assert opened(tmp_path / "a")[0].digest != first


WHOLE = [tfds(IMAGES[0], 0), tfds(IMAGES[1], 1)]


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([{"label": 1}], "record 0 of .* has the features label: the rule is one of image/encoded"),
        ([WHOLE[0], {"image": IMAGES[0]}], "record 1 of .* has the features image: the rule"),
        ([{"image": 3, "label": 1}], "has the features image, label: the rule is one of"),
        ([{"image": IMAGES[0], "label": b"cat"}], "has the features image, label: the rule"),
        ([{}], "has the features : the rule is one of"),
        ([], "split 'train' in .* is empty: choose another"),
    ],
)
def test_records_without_an_image_and_a_label_are_refused(
    tmp_path: pathlib.Path, examples: list[dict[str, Any]], message: str
) -> None:
    write_tfrecord(tmp_path / "a" / "train-00000-of-00001", examples)
    with pytest.raises(InputError, match=message):
        opened(tmp_path / "a")


@pytest.mark.parametrize("keep", [3, 11, 40, -5, -1])
def test_a_cut_file_is_refused(tmp_path: pathlib.Path, keep: int) -> None:
    path = tmp_path / "a" / "train-00000-of-00001"
    write_tfrecord(path, WHOLE)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="can't be read as TFRecord .*it is cut, damaged or of"):
        opened(tmp_path / "a")


def test_other_files_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a" / "train-00000-of-00002"
    path.parent.mkdir()
    for data in (b"some text that is no record", bytes([8, 0, 0, 0, 0, 0, 0, 0]) + b"\xff" * 16):
        path.with_name("train.tfrecord").write_bytes(data)
        with pytest.raises(InputError, match=r"train.tfrecord' belongs to no split|as TFRecord"):
            opened(tmp_path / "a")
        path.with_name("train.tfrecord").rename(path.with_name("train-0.tfrecord"))
        with pytest.raises(InputError, match="can't be read as TFRecord"):
            opened(tmp_path / "a")
        path.with_name("train-0.tfrecord").unlink()
    write_tfrecord(path, WHOLE)
    with pytest.raises(InputError, match="lacks file 1"):
        opened(tmp_path / "a")
    path.with_name("train-00001-of-00002").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(InputError, match="is compressed by gzip: unpack it"):
        opened(tmp_path / "a")


def test_the_data_commands(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_tfrecord(tmp_path / "a" / "train-00000-of-00001", WHOLE)
    options = ["--source", str(tmp_path / "a"), "--data-dir", str(tmp_path / "prepared")]
    assert main(["data", "info", "tfrecord", *options, "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["splits"]["train"]["examples"] == 2
    assert facts["report"]["classes"] == {"train": {"0": 1, "1": 1}}
    assert main(["data", "verify", "tfrecord", *options, "--decode"]) == 0
