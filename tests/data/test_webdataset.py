"""Tars in the form of WebDataset."""

import io
import json
import os
import pathlib
import pickle
import sys
import tarfile
from typing import Any

import numpy as np
import pytest

from benchmarks.forms import write_tar
from flaxres.cli import main
from flaxres.data import _index
from flaxres.data.datasets import open_or_prepare
from flaxres.data.labels import require_labels
from flaxres.data.source import Source
from flaxres.errors import InputError
from tests.data.loading import evaluation, load
from tests.data.samples import encoded, photograph

IMAGES = [encoded(photograph(12 + i, 10), "PNG") for i in range(6)]
LABELS = [0, 1, 1, 0, 2, 0]
MEMBERS = [
    part
    for i, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True))
    for part in ((f"{i:06d}.cls", b"%d" % label), (f"{i:06d}.png", image))
]


def opened(root: pathlib.Path, *splits: str, **options: Any) -> list[Source]:
    data_dir = str(root.parent / "prepared")
    return open_or_prepare("webdataset", splits, str(root), data_dir, **options)


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    write_tar(tmp_path / "tars" / "train-000001.tar", MEMBERS[6:])
    write_tar(tmp_path / "tars" / "train-000000.tar", MEMBERS[:6])
    write_tar(tmp_path / "tars" / "imagenet-val-000000.tar", MEMBERS[:4])
    return tmp_path / "tars"


def test_reading_in_place_needs_no_tfds(
    root: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    (source,) = open_or_prepare("webdataset", ["train"], str(root))
    assert len(source) == len(IMAGES)
    assert list((tmp_path / "prepared" / "webdataset").iterdir())


def test_samples_are_read_in_the_order_of_the_tars(root: pathlib.Path) -> None:
    train, val = opened(root, "train", "val")
    assert [train.read(i) for i in range(6)] == list(zip(IMAGES, LABELS, strict=True))
    assert [train.file_name(i) for i in (0, 5)] == ["000000.png", "000005.png"]
    assert train.file(3).endswith("train-000001.tar")
    assert train.classes == val.classes == ("0", "1", "2")
    assert len(val) == 2
    assert pickle.loads(pickle.dumps(train)).read(4) == train.read(4)


FORMS = {
    "a.jpg a.cls": 3,
    "a/b.c/d.e.jpg": None,  # as in WebDataset the extension begins at the first dot of the name
    "deep/a.JPEG deep/a.json": 3,
    "a.webp a.txt a.cls": 3,
    "./a.png ./a.cls ./a.seg.png": 3,
    ".hidden.jpg a.png a.cls README ._b.png": 3,
    "a.cls a.json a.png": 3,
}


@pytest.mark.parametrize("form", FORMS)
def test_members_are_grouped_by_key(tmp_path: pathlib.Path, form: str) -> None:
    contents = {"cls": b"3\n", "json": b'{"label": 3}', "txt": b"text"}
    members = [(name, contents.get(name.rpartition(".")[2], IMAGES[0])) for name in form.split()]
    write_tar(tmp_path / "a" / "train" / "first.tar", members)
    if FORMS[form] is None:
        with pytest.raises(InputError, match=r"sample 'a/b.c/d' \(e.jpg\) has 0 images"):
            opened(tmp_path / "a")
        return
    (source,) = opened(tmp_path / "a", "train")
    assert [source.read(i) for i in range(len(source))] == [(IMAGES[0], 3)]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b"x")], r"sample 'a' \(jpg\) has no label: the rule is a file .cls"),
        ([("a.cls", b"1")], r"sample 'a' \(cls\) has 0 images: the rule is one of jpg, jpeg"),
        ([("a.jpg", b"x"), ("a.png", b"x"), ("a.cls", b"1")], "has 2 images"),
        ([("a.jpg", b"x"), ("a.cls", b"1"), ("a.cls", b"1")], "each extension once"),
        ([("a.jpg", b"x"), ("b.jpg", b"x"), ("a.cls", b"1")], r"sample 'a' \(jpg\) has no label"),
        ([("a.jpg", b"x"), ("a.cls", b"cat")], "has the label b'cat': the rule is an integer"),
        ([("a.jpg", b"x"), ("a.cls", b"9" * 20)], "has the label b'9999"),
        ([("a.jpg", b"x"), ("a.json", b"[1]")], r"has the label b'\[1\]'"),
        ([("a.jpg", b"x"), ("a.json", b'{"label": true}')], "the rule is an integer in .cls, or"),
        ([("a.jpg", b"x"), ("a.json", b'{"label": "cat"}')], "the rule is an integer in .cls, or"),
        ([("a.jpg", b"x"), ("a.cls", bytes(2 << 20))], "has 2,097,152 bytes: the rule is at most"),
        ([("notes", b"x")], "split 'train' in .* is empty: choose another"),
    ],
)
def test_samples_that_are_not_whole_are_refused(
    tmp_path: pathlib.Path, members: list[tuple[str, bytes]], message: str
) -> None:
    write_tar(tmp_path / "a" / "train-000000.tar", members)
    with pytest.raises(InputError, match=message) as error:
        opened(tmp_path / "a")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("place", [0, 100, 512, 700, 1024, 2000, 5120, None])
def test_a_cut_tar_is_refused(root: pathlib.Path, place: int | None) -> None:
    path = root / "train-000001.tar"
    data = path.read_bytes()
    content = (len(data.rstrip(b"\0")) + 511) // 512 * 512  # without the end of the archive
    path.write_bytes(data[: content if place is None else place])
    with pytest.raises(InputError, match="train-000001.tar' can't be read as a tar .*: it is cut"):
        opened(root)


def test_a_damaged_header_does_not_end_a_tar_silently(root: pathlib.Path) -> None:
    path = root / "train-000000.tar"
    data = bytearray(path.read_bytes())
    data[2048 + 150] ^= 1  # in the checksum of the header of the second image
    path.write_bytes(data)
    with pytest.raises(InputError, match="no end of the archive at byte "):
        opened(root)


def test_a_compressed_tar_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").mkdir()
    with tarfile.open(tmp_path / "a" / "train-000000.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
    with pytest.raises(InputError, match="as a tar without compression"):
        opened(tmp_path / "a")


def test_the_index_is_kept_until_a_tar_changes(
    root: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0o022)
    try:
        first = opened(root, "train")[0]
    finally:
        os.umask(before)
    place = root.parent / "prepared" / "webdataset"
    assert [path.stat().st_mode & 0o777 for path in place.iterdir()] == [0o644] * 2
    with monkeypatch.context() as patched:
        patched.setattr(_index, "_index", None)
        again = opened(root, "train")[0]
        assert again.digest == first.digest
        assert [again.read(i) for i in range(6)] == [first.read(i) for i in range(6)]
        path = root / "train-000000.tar"
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
        with pytest.raises(TypeError):
            opened(root, "train")
    assert opened(root, "train")[0].digest == first.digest  # which times do not change
    for kept in place.iterdir():
        kept.write_bytes(kept.read_bytes()[:50])
    assert opened(root, "train")[0].digest == first.digest
    changed = [*MEMBERS[:5], ("000002.png", IMAGES[2] + b"more")]
    write_tar(root / "train-000000.tar", changed)
    assert opened(root, "train")[0].digest != first.digest
    write_tar(root / "train-000000.tar", [("000000.cls", b"1"), *MEMBERS[1:6]])
    assert opened(root, "train")[0].digest != first.digest


def test_without_a_place_for_the_index_it_is_made_again(root: pathlib.Path) -> None:
    (root.parent / "prepared").write_text("a file where a folder should be")
    assert len(opened(root, "train")[0]) == 6


def test_classes_have_names(root: pathlib.Path) -> None:
    (root / "classes.txt").write_text("cat\ndog\r\neel\n")
    before = opened(root)[0]
    assert before.classes == ("cat", "dog", "eel")
    (root / "classes.txt").write_text("cat\ndog\n")
    train = opened(root, "train")[0]
    assert train.digest != before.digest
    with pytest.raises(InputError, match=r"1 of 6 labels .*first is 2 in webdataset/train record"):
        require_labels(train)
    for wrong in ("", "cat\n\ndog\n", "cat\ncat\n"):
        (root / "classes.txt").write_text(wrong)
        with pytest.raises(InputError, match="the rule is one class a line, each once"):
            opened(root)


def test_labels_below_zero_are_refused_before_training(tmp_path: pathlib.Path) -> None:
    write_tar(tmp_path / "a" / "test-0.tar", [("a.jpg", b"x"), ("a.cls", b"-1")])
    with pytest.raises(InputError, match="labels read of webdataset/test are no numbers of class"):
        require_labels(opened(tmp_path / "a")[0])


def test_an_image_that_can_not_be_decoded_or_read_is_named(root: pathlib.Path) -> None:
    write_tar(root / "train-000000.tar", [*MEMBERS[:5], ("000002.png", b"text")])
    (train,) = opened(root, "train")
    message = r"webdataset/train record 2 \(000002.png\): .*; download or write its tar again, or"
    with pytest.raises(InputError, match=message):
        load(train, evaluation(8, 8))
    path = root / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="record 5 can't be read from .*000001.tar.*ends before"):
        train.read(5)


def test_the_data_commands(root: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    data_dir = str(root.parent / "prepared")
    where = ["webdataset", "--source", str(root), "--data-dir", data_dir, "--json"]
    assert main(["data", "info", *where]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["report"]["classes"]["train"] == {"0": 3, "1": 2, "2": 1}
    assert facts["splits"]["train"]["shards"] == 2
    assert main(["data", "verify", *where, "--decode"]) == 0
    assert main(["data", "info", "webdataset"]) == 2
    assert "data.name='webdataset' needs data.source: the folder" in capfd.readouterr().err
    assert np.sum([split["bytes"] for split in facts["splits"].values()]) == sum(
        path.stat().st_size for path in root.glob("*.tar")
    )
