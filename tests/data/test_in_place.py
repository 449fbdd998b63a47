"""A folder of images that is read in place."""

import io
import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from flaxres.cli import main
from flaxres.data.datasets import describe, open_or_prepare
from flaxres.data.folders import list_folder
from flaxres.data.labels import require_labels
from flaxres.data.source import Source
from flaxres.errors import InputError
from tests.data.loading import evaluation, load
from tests.data.test_folders import labels, names, write


def opened(root: pathlib.Path, *splits: str, validation: float = 0.0) -> list[Source]:
    return open_or_prepare("folder", splits, str(root), validation=validation, copy=False)


def copied(root: pathlib.Path, *splits: str, validation: float = 0.0) -> list[Source]:
    data_dir = str(root.parent / "prepared")
    return open_or_prepare("folder", splits, str(root), data_dir, validation=validation)


@pytest.mark.parametrize("validation", [0.0, 0.3])
def test_the_records_are_those_of_the_prepared_folder(
    tmp_path: pathlib.Path, validation: float
) -> None:
    root = write(tmp_path / "a", {"cat": 9, "dog": 5, "eel/deep": 3})
    (root / "train" / "cat" / "notes.txt").write_text("text")
    (root / "train" / "dog" / "list").write_text("text")
    Image.new("RGB", (8, 8), (1, 2, 3)).save(root / "train" / "dog" / "photograph", "JPEG")
    whole = opened(root, validation=validation)
    for ours, theirs in zip(whole, copied(root, validation=validation), strict=True):
        assert ours.name == theirs.name
        assert ours.classes == theirs.classes
        assert names(ours) == names(theirs)
        assert labels(ours) == labels(theirs)
    assert [source.name for source in whole] == ["folder/train", "folder/val"][: len(whole)]
    notes = describe("folder", str(root), None, validation, False)["report"]["notes"]
    left_out = "2 files of split 'train' are no images (1 .txt, 1 no extension; the first is"
    assert any(note.startswith(left_out) for note in notes) or validation


def test_the_order_is_not_that_of_the_file_system(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(tmp_path / "a", {"cat": 5, "dog": 5})
    (expected,), walk, iterdir = opened(root), os.walk, pathlib.Path.iterdir
    monkeypatch.setattr(
        os, "walk", lambda *a, **k: ((p, d[::-1], f[::-1]) for p, d, f in walk(*a, **k))
    )
    monkeypatch.setattr(pathlib.Path, "iterdir", lambda path: reversed([*iterdir(path)]))
    (other,) = opened(root)
    assert names(other) == names(expected)
    assert other.digest == expected.digest


def test_the_digest_follows_names_sizes_and_times_but_not_the_place(
    tmp_path: pathlib.Path,
) -> None:
    root = write(tmp_path / "a", {"cat": 2, "dog": 2})
    first = opened(root)[0].digest
    root = root.rename(tmp_path / "b")
    assert opened(root)[0].digest == first
    image = root / "train" / "cat" / "0.png"
    status = image.stat()
    data = image.read_bytes()
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    digests = {first, opened(root)[0].digest}
    image.write_bytes(data + b"more")
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    digests.add(opened(root)[0].digest)
    image.write_bytes(data)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert opened(root)[0].digest == first
    image.rename(image.with_name("9.png"))
    digests.add(opened(root)[0].digest)
    assert len(digests) == 4


def test_images_that_can_not_be_decoded_go_the_way_of_bad_images(tmp_path: pathlib.Path) -> None:
    root = write(tmp_path / "a", {"cat": 4, "dog": 4})
    (root / "train" / "cat" / "2.png").write_bytes(b"text")
    (source,) = opened(root, "train")
    assert len(source) == 8
    with pytest.raises(InputError, match=r"2.png\).*; repair or remove that file, or set data.bad"):
        load(source, evaluation(8, 8))
    (root / "train" / "cat" / "1.png").unlink()
    with pytest.raises(InputError, match=r"can't be read .*1.png.*repair or remove that file"):
        load(source, evaluation(8, 8))


def test_a_cmyk_jpeg_differs_from_its_prepared_copy_by_the_rounding_of_a_jpeg(
    tmp_path: pathlib.Path,
) -> None:
    root = write(tmp_path / "a", {"cat": 1, "dog": 1})
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    for label in ("cat", "dog"):
        image = Image.fromarray(noise).convert("CMYK")
        image.save(root / "train" / label / "0.png", "JPEG")
    pixels = [load(opening(root, "train")[0], evaluation(2, 8)) for opening in (opened, copied)]
    difference = np.subtract(*(batches[0]["image"].astype(int) for batches in pixels))
    assert 0 < np.abs(difference).mean() < 4


def test_known_labels_are_all_checked_and_no_image_is_read(tmp_path: pathlib.Path) -> None:
    (source,) = opened(write(tmp_path / "a", {"cat": 2, "dog": 2}))
    for image in (tmp_path / "a").rglob("*.png"):
        image.unlink()
    require_labels(source)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits", "data.copy=False with data.name='digits': only folder.* set data.copy=True"),
        ("folder", "data.name='folder' needs data.source"),
    ],
)
def test_names_and_settings_that_do_not_fit_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_or_prepare(name, ["train"], copy=False)


def test_a_class_without_an_image_is_refused(tmp_path: pathlib.Path) -> None:
    root = write(tmp_path / "a", {"cat": 2, "dog": 0})
    (root / "train" / "dog" / "notes.txt").write_text("text")
    with pytest.raises(InputError, match="class 'dog' of split 'train' has files, but no image"):
        opened(root)


def test_the_data_commands_read_in_place(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root, data_dir = write(tmp_path / "a: b", {"cat": 3, "dog": 2}), tmp_path / "prepared"
    where = ["folder", "--source", str(root), "--data-dir", str(data_dir), "--no-copy"]
    assert main(["data", "info", *where]) == 0
    printed = capfd.readouterr().out
    assert "split train: 5 images, 0.0 MiB in 1 files, read in place\n" in printed
    assert "images of train: cat 3, dog 2\n" in printed
    assert main(["data", "info", *where, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["digest"] == opened(root)[0].digest
    assert main(["data", "verify", *where, "--decode"]) == 0
    assert not data_dir.exists()
    assert main(["data", "shrink", *where, "--short-side", "4"]) == 0
    printed = capfd.readouterr().out
    name = printed.rpartition("--data.name ")[2].strip()
    assert name == f"folder/a__b_{opened(root)[0].digest[:8]}_4px_q90"
    assert main(["data", "info", name, "--data-dir", str(data_dir)]) == 0
    (root / "train" / "dog" / "0.png").write_bytes(b"text")
    assert main(["data", "verify", *where, "--decode"]) == 2
    assert "flaxres: folder/train record" in capfd.readouterr().err


def test_a_listing_serves_both_ways(tmp_path: pathlib.Path) -> None:
    root = write(tmp_path / "a", {"cat": 3, "dog": 2})
    listing = list_folder(root)
    (source,) = opened(root)
    assert names(source) == [listing.file_name(path) for _, path in listing.mixed("train")]
    data, _ = source.read(0)
    assert Image.open(io.BytesIO(data)).size == (8, 8)
