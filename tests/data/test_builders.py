"""Preparation of datasets: files that are written, repaired or refused, and interruptions."""

import gzip
import io
import pathlib
import shutil
import tarfile
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from flaxres.data import builders, digests, prepare as preparing
from flaxres.data._naming import config_name, version
from flaxres.data.datasets import open_or_prepare
from flaxres.data.prepare import prepare
from flaxres.data.sources import describe, open_source
from flaxres.errors import InputError
from flaxres.serving.crop import centre_crop


def test_digits_are_all_there(data_dir: str) -> None:
    prepare("digits", None, data_dir)
    train, test = (open_source("digits", split, data_dir=data_dir) for split in ("train", "test"))
    assert (len(train), len(test)) == (1297, 500)
    assert train.classes == tuple("0123456789")
    assert np.bincount([test.read(i)[1] for i in range(500)]).tolist() == [50] * 10
    images = {
        centre_crop(source.read(i)[0], 8, 8, "bilinear").tobytes()
        for source in (train, test)
        for i in range(len(source))
    }
    assert len(images) == 1797


def test_a_folder_becomes_a_dataset_and_is_not_written_twice(
    photographs: Callable[..., pathlib.Path], data_dir: str
) -> None:
    root = photographs(6, 3)
    place, tally = prepare("folder", str(root), data_dir)
    assert {split: dict(counts) for split, counts in tally.counts.items()} == {
        "train": {"JPEG": 12},
        "val": {"JPEG": 6},
    }
    written = {path.name: path.stat().st_mtime_ns for path in place.iterdir()}
    again, tally = prepare("folder", str(root), data_dir)
    assert again == place
    assert not tally.counts
    assert {path.name: path.stat().st_mtime_ns for path in place.iterdir()} == written
    source = open_source("folder", "train", str(root), data_dir)
    assert source.classes == ("blue", "red")
    assert sorted(source.read(i) for i in range(12)) == sorted(
        (path.read_bytes(), label)
        for label, name in enumerate(("blue", "red"))
        for path in (root / "train" / name).iterdir()
    )
    # Another image is another dataset.
    Image.new("RGB", (8, 8)).save(root / "train" / "red" / "new.jpg")
    (changed,) = open_or_prepare("folder", ["train"], str(root), data_dir)
    assert len(changed) == 13


def test_files_that_are_no_images_are_skipped_named_and_counted(
    photographs: Callable[..., pathlib.Path], data_dir: str
) -> None:
    root = photographs(4, 2)
    (root / "train" / "red" / "notes.jpg").write_text("this is text")
    (root / "train" / "red" / "empty.png").write_bytes(b"")
    Image.new("CMYK", (8, 8)).save(root / "val" / "red" / "print.jpg")
    (root / "train" / "red" / "README.txt").write_text("neither by its name nor its content")
    _, tally = prepare("folder", str(root), data_dir)
    assert tally.counts["train"] == {"JPEG": 8, "refused": 2, "no image (.txt)": 1}
    assert tally.counts["val"] == {"JPEG": 4, "JPEG CMYK repaired": 1}
    assert dict(tally.refused) == {
        "train/red/notes.jpg": "this is no JPEG or PNG image",
        "train/red/empty.png": "the file is empty",
        "train/red/README.txt": "this is no JPEG or PNG image",
    }
    assert len(open_source("folder", "train", str(root), data_dir)) == 8
    assert describe("folder", str(root), data_dir)["splits"]["train"]["examples"] == 8


def test_a_preparation_that_was_interrupted_starts_again(
    photographs: Callable[..., pathlib.Path], data_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, real, calls = photographs(40, 2), preparing.repair, iter(range(1000))

    def interrupted(data: bytes) -> tuple[str, bytes]:
        if next(calls) == 30:
            raise KeyboardInterrupt
        return real(data)

    monkeypatch.setattr(preparing, "repair", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare("folder", str(root), data_dir)
    config = config_name("folder", str(root))
    assert config is not None
    assert not list((pathlib.Path(data_dir) / "folder" / config).glob("*/dataset_info.json"))
    monkeypatch.undo()
    assert prepare("folder", str(root), data_dir)[1].counts["train"] == {"JPEG": 80}
    assert {path.name for path in (pathlib.Path(data_dir) / "folder" / config).iterdir()} == {
        version("folder"),
        ".lock",
    }


@pytest.mark.parametrize("name", ["nosuch", "digit"])
def test_unknown_datasets_are_refused(name: str, data_dir: str) -> None:
    with pytest.raises(InputError, match="unknown dataset"):
        prepare(name, None, data_dir)
    with pytest.raises(InputError, match="unknown dataset"):
        open_or_prepare(name, ["train"], data_dir=data_dir)


def test_folders_that_break_the_rules_are_refused(
    photographs: Callable[..., pathlib.Path], tmp_path: pathlib.Path, data_dir: str
) -> None:
    def refusal(source: str | None) -> str:
        with pytest.raises(InputError) as refused:
            open_or_prepare("folder", ["train"], source, data_dir)
        return str(refused.value)

    assert "needs data.source" in refusal(None)
    assert "is not a folder" in refusal(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    assert "holds no <split>/<class>/*.jpg" in refusal(str(tmp_path / "empty"))
    root = photographs(2, 2)
    (root / "train" / "green").mkdir()
    Image.new("RGB", (8, 8)).save(root / "train" / "green" / "0.jpg")
    assert "class 'green' has no images in split 'val'" in refusal(str(root))
    for name in ("blue", "red", "green"):
        for path in (root / "train" / name).iterdir():
            path.write_text("text")
        (root / "val" / name).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / "val" / name / "0.jpg")
    assert "no image that can be read: 5 files were refused" in refusal(str(root))


def test_a_split_that_will_not_be_there_is_refused_before_the_work(
    photographs: Callable[..., pathlib.Path], data_dir: str
) -> None:
    root = photographs(3, 3, size=(41, 33))
    with pytest.raises(InputError, match="unknown split of folder 'test': choose from train, val"):
        open_or_prepare("folder", ["train", "test"], str(root), data_dir)
    shutil.rmtree(root / "val")
    with pytest.raises(InputError, match="hold out a part of train as val.*--data.validation 0.1"):
        open_or_prepare("folder", ["train", "val"], str(root), data_dir)
    config = config_name("folder", str(root))
    assert config is not None
    assert not (pathlib.Path(data_dir) / "folder" / config).exists()


def test_a_split_that_is_not_there_is_refused_with_the_near_one(data_dir: str) -> None:
    with pytest.raises(InputError, match="unknown split of digits 'tst': did you mean test"):
        open_or_prepare("digits", ["tst"], data_dir=data_dir)
    prepare("digits", None, data_dir)
    with pytest.raises(InputError, match="unknown split of digits 'tst': did you mean test"):
        open_source("digits", "tst", data_dir=data_dir)
    assert len(open_source("digits", "train[:10%]", data_dir=data_dir)) == 130
    with pytest.raises(InputError, match=r"train\[:"):
        open_source("digits", "train[:x%]", data_dir=data_dir)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def test_cifar10_is_read_from_its_archive(
    tmp_path: pathlib.Path, data_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (6, 3, 3073), np.uint8)
    rows[..., 0] %= 10
    archive = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
            add(tar, f"cifar-10-batches-bin/{name}.bin", rows[i].tobytes())
    with pytest.raises(InputError, match=r"has SHA-256 .*: the official"):
        prepare("cifar10", str(archive), data_dir)
    with pytest.raises(InputError, match="does not exist"):
        prepare("cifar10", str(tmp_path / "nothing"), data_dir)
    monkeypatch.setattr(builders, "CIFAR10_SHA256", digests.file_digest(archive))
    prepare("cifar10", str(tmp_path), data_dir)
    for split, expected in (("train", rows[:5].reshape(-1, 3073)), ("test", rows[5])):
        source = open_source("cifar10", split, data_dir=data_dir)
        for i, row in enumerate(expected):
            data, label = source.read(i)
            assert label == row[0]
            np.testing.assert_array_equal(
                centre_crop(data, 32, 32, "bilinear"), row[1:].reshape(3, 32, 32).transpose(1, 2, 0)
            )


def test_fault_32_a_malicious_archive_leads_nowhere(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builders, "IMAGENET_IMAGES", {"train": 1, "validation": 1})
    data_dir = str(tmp_path / "data")
    source, escape, outside = tmp_path / "source", tmp_path / "escaped", tmp_path / "outside.JPEG"
    source.mkdir()
    outside.write_bytes(jpeg(20))
    validation = source / "ILSVRC2012_img_val.tar"

    def inner(*members: tuple[str, bytes | str]) -> bytes:
        """A tar of files, and of links where the content is a path."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, content in members:
                if isinstance(content, bytes):
                    add(tar, name, content)
                    continue
                link = tarfile.TarInfo(name)
                link.type, link.linkname = tarfile.SYMTYPE, content
                tar.addfile(link)
        return buffer.getvalue()

    def attempt(content: bytes) -> None:
        with tarfile.open(source / "ILSVRC2012_img_train.tar", "w") as outer:
            add(outer, "../n01440764.tar", content)
        prepare("imagenet2012", str(source), data_dir)

    validation.write_bytes(inner(("ILSVRC2012_val_00000001.JPEG", jpeg(50))))
    with pytest.raises(InputError, match=r"has 0 images|holds no image"):
        attempt(inner(("n01440764_1.JPEG", str(outside))))  # a link to a file outside is no image
    with pytest.raises(InputError, match="the archive is damaged"):
        attempt(gzip.compress(bytes(1 << 20)))
    monkeypatch.setattr(builders, "LARGEST_IMAGE", 1 << 16)
    with pytest.raises(
        InputError, match=r"member 0 'n01440764_1.JPEG' has 1,048,576 bytes: the rule is"
    ):
        attempt(inner(("n01440764_1.JPEG", bytes(1 << 20))))
    monkeypatch.setattr(builders, "MOST_MEMBERS", 2)
    with pytest.raises(InputError, match=r"member 2 .*: the rule is at most 2 members"):
        attempt(inner(*((f"n01440764_{i}.JPEG", jpeg(9)) for i in range(3))))
    attempt(inner((str(escape), jpeg(9))))  # the name is kept and leads nowhere
    assert {path.name for path in tmp_path.iterdir()} == {"source", "outside.JPEG", "data"}
    record = open_source("imagenet2012", "train", data_dir=data_dir)
    assert record.file_name(0) == str(escape)


def jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (shade, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_imagenet_is_read_from_its_tars(
    tmp_path: pathlib.Path, data_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        prepare("imagenet2012", None, data_dir)
    with tarfile.open(tmp_path / "ILSVRC2012_img_train.tar", "w") as outer:
        for shade, name in ((10, "n01440764"), (200, "n15075141")):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                add(tar, f"{name}_1.JPEG", jpeg(shade))
            add(outer, f"{name}.tar", inner.getvalue())
    with pytest.raises(InputError, match=r"img_val.tar' does not exist"):
        prepare("imagenet2012", str(tmp_path), data_dir)
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar", "w") as tar:
        add(tar, "ILSVRC2012_val_00000001.JPEG", jpeg(50))
        add(tar, "ILSVRC2012_val_00000002.JPEG", jpeg(60))
    with pytest.raises(
        InputError,
        match="split 'train' has 2 images: the rule is 1,281,167; the archive is incomplete",
    ):
        prepare("imagenet2012", str(tmp_path), data_dir)
    monkeypatch.setattr(builders, "IMAGENET_IMAGES", {"train": 2, "validation": 2})
    prepare("imagenet2012", str(tmp_path), data_dir)
    train, validation = (
        open_source("imagenet2012", split, data_dir=data_dir) for split in ("train", "validation")
    )
    assert len(train.classes) == 1000
    assert {train.read(i) for i in range(2)} == {
        (jpeg(10), train.classes.index("n01440764")),
        (jpeg(200), train.classes.index("n15075141")),
    }
    # The first two lines of the official ground truth, as WordNet ids.
    assert [validation.classes[validation.read(i)[1]] for i in range(2)] == [
        "n01751748",
        "n09193705",
    ]
