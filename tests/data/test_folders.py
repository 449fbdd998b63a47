"""Folders of images: mixed classes, validation splits, and files that are left out."""

import json
import pathlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from flaxres.cli import main
from flaxres.data import prepare as preparing, sources
from flaxres.data._naming import config_name
from flaxres.data.contents import mixed
from flaxres.data.datasets import open_or_prepare
from flaxres.data.prepare import prepare
from flaxres.data.source import Source
from flaxres.errors import InputError


def write(root: pathlib.Path, counts: dict[str, int], split: str = "train") -> pathlib.Path:
    """Writes small images of one colour, another for each file."""
    for k, (label, count) in enumerate(counts.items()):
        (root / split / label).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = Image.fromarray(np.full((8, 8, 3), (9 * k, i, 0), np.uint8))
            image.save(root / split / label / f"{i}.png")
    return root


def labels(source: Source) -> Counter[str]:
    return Counter(source.classes[source.read(i)[1]] for i in range(len(source)))


def names(source: Source) -> list[str]:
    return [source.file_name(i) for i in range(len(source))]


def test_slices_hold_all_classes_in_their_proportions(tmp_path: pathlib.Path) -> None:
    root = str(write(tmp_path / "a", {f"c{k}": 20 for k in range(9)} | {"large": 100}))
    splits = ["train[:90%]", "train[90%:]", "train[40%:60%]"]
    first, last, middle = open_or_prepare("folder", splits, root, str(tmp_path / "out"))
    for source, share in ((first, 0.9), (last, 0.1), (middle, 0.2)):
        counts = labels(source)
        assert len(counts) == 10
        for label, number in counts.items():
            assert abs(number - share * (100 if label == "large" else 20)) <= 1
    assert sorted(names(first) + names(last)) == sorted(
        f"train/{path.parent.name}/{path.name}" for path in pathlib.Path(root).glob("train/*/*")
    )


def test_the_order_depends_on_names_alone_and_has_no_pattern() -> None:
    classes = {"a": [f"a{i}" for i in range(30)], "b": [f"b{i}" for i in range(30)]}
    order = mixed(classes, str)
    again = mixed({k: v[::-1] for k, v in reversed(classes.items())}, str)
    assert order == again
    assert [item for label, item in order if label == "a"] != classes["a"]
    # Classes do not merely alternate: of 30 pairs about half would begin with each class.
    assert {"a", "b"} == {order[2 * i][0] for i in range(30)}


def test_a_validation_split_is_stratified(tmp_path: pathlib.Path) -> None:
    root = write(tmp_path / "a", {"cat": 20, "dog": 50, "eel": 4, "one": 1})
    data_dir = str(tmp_path / "out")
    train, val = open_or_prepare("folder", ["train", "val"], str(root), data_dir, validation=0.1)
    assert labels(val) == {"cat": 2, "dog": 5, "eel": 1}
    assert labels(train) == {"cat": 18, "dog": 45, "eel": 3, "one": 1}
    assert not set(names(train)) & set(names(val))
    again = open_or_prepare("folder", ["val"], str(root), str(tmp_path / "b"), validation=0.1)
    assert names(again[0]) == names(val)
    report = sources.describe("folder", str(root), data_dir, 0.1)["report"]
    assert report["classes"]["val"] == {"cat": 2, "dog": 5, "eel": 1}
    assert report["notes"] == [
        "class 'one' has one image in split 'train'",
        "class 'eel' has one image in split 'val'",
        "class 'one' has no image in split 'val'",
    ]
    # Without the setting the folder is another dataset.
    (whole,) = open_or_prepare("folder", ["train"], str(root), data_dir)
    assert len(whole) == 75


def test_a_validation_split_is_refused_where_it_has_no_place(tmp_path: pathlib.Path) -> None:
    root = write(write(tmp_path / "a", {"cat": 3}), {"cat": 3}, "val")
    with pytest.raises(InputError, match="which has the splits train, val: set data.validation=0"):
        prepare("folder", str(root), str(tmp_path / "out"), validation=0.2)
    with pytest.raises(InputError, match="data.validation=0.2 with data.name='digits'"):
        prepare("digits", None, str(tmp_path / "out"), validation=0.2)
    prepare("digits", None, str(tmp_path / "out"))
    with pytest.raises(InputError, match="data.validation=0.2 with data.name='digits'"):
        open_or_prepare("digits", ["test"], None, str(tmp_path / "out"), validation=0.2)


def test_slices_of_datasets_sorted_by_class_are_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, data_dir = str(write(tmp_path / "a", {"cat": 3, "dog": 3})), str(tmp_path / "out")
    monkeypatch.setattr(preparing, "version", lambda name: "1.1.0")
    prepare("folder", root, data_dir)
    name = f"folder/{config_name('folder', root)}"
    assert len(sources.open_source(name, "train", None, data_dir)) == 6
    with pytest.raises(InputError, match=r"'train\[:90%\]' of folder/.*:?1.1.0 would lack classes"):
        sources.open_source(name, "train[:90%]", None, data_dir)


FORMATS = ["a.webp", "a.BMP", "a.tif", "a.jfif", "a.avif", "A.JPG", "a.gif", "noextension"]


def test_whatever_pillow_opens_is_an_image(tmp_path: pathlib.Path) -> None:
    place = write(tmp_path / "a", {"cat": 1}) / "train" / "cat"
    forms = ["WEBP", "BMP", "TIFF", "JPEG", "AVIF", "JPEG", "GIF", "PNG"]
    for name, form in zip(FORMATS, forms, strict=True):
        Image.new("RGB", (8, 8), (200, 0, 0)).save(place / name, form)
    (place / "film.mp4").write_bytes(bytes(1000))
    (place / "notes.txt").write_text("text")
    (place / "list").write_text("text")
    data_dir = str(tmp_path / "out")
    _, tally = prepare("folder", str(tmp_path / "a"), data_dir, bad_images="error")
    (source,) = open_or_prepare("folder", ["train"], str(tmp_path / "a"), data_dir)
    assert set(names(source)) == {f"train/cat/{name}" for name in [*FORMATS, "0.png"]}
    no_image = {key: n for key, n in tally.counts["train"].items() if key.startswith("no image")}
    assert no_image == {
        "no image (.mp4)": 1,
        "no image (.txt)": 1,
        "no image (no extension)": 1,
    }
    assert {name for name, _ in tally.refused} == {
        f"train/cat/{name}" for name in ("film.mp4", "notes.txt", "list")
    }


def test_links_are_followed_and_hidden_folders_are_not(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = write(tmp_path / "a", {"cat": 2, "dog": 2})
    write(tmp_path / "elsewhere", {"more": 3})
    cat = root / "train" / "cat"
    (cat / "linked").symlink_to(tmp_path / "elsewhere" / "train" / "more")
    (cat / "circle").symlink_to(cat)
    write(root, {"cat/.thumbnails": 5, "empty": 0, ".cache": 1})
    Image.new("RGB", (8, 8)).save(root / "train" / "loose.png")
    data_dir = str(tmp_path / "out")
    command = ["data", "info", "folder", "--source", str(root), "--data-dir", data_dir]
    assert main([*command, "--json"]) == 0
    report = json.loads(capfd.readouterr().out)["report"]
    assert report["classes"] == {"train": {"cat": 5, "dog": 2}}
    assert report["notes"] == [
        "class 'empty' of split 'train' has no files: left out",
        "1 hidden files or folders in split 'train': left out",
        "1 files of split 'train' lie in no class (1 .png; the first is 'loose.png'): left out",
    ]
    assert main(command) == 0
    printed = capfd.readouterr().out
    assert "images of train: cat 5, dog 2\n" in printed
    assert all(note in printed for note in report["notes"])


def test_a_class_of_unreadable_images_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    root = write(tmp_path / "a", {"cat": 2, "dog": 2})
    for path in (root / "train" / "dog").iterdir():
        path.write_bytes(b"text")
    with pytest.raises(InputError, match="class 'dog' of split 'train' has files, but no image"):
        prepare("folder", str(root), str(tmp_path / "out"))


def test_a_single_class_is_told(tmp_path: pathlib.Path) -> None:
    root = write(tmp_path / "a", {"cat": 2})
    _, tally = prepare("folder", str(root), str(tmp_path / "out"))
    assert "there is one class only, 'cat': nothing can be learnt from it" in tally.lines()


@pytest.mark.parametrize("label", [" cat", "cat ", "two\nlines", "two\x85lines"])
def test_names_that_can_not_be_stored_are_refused(tmp_path: pathlib.Path, label: str) -> None:
    root = write(tmp_path / "a", {"dog": 1, label: 1})
    with pytest.raises(InputError, match="a name with a line break, or spaces around it") as error:
        prepare("folder", str(root), str(tmp_path / "out"))
    assert len(str(error.value).splitlines()) == 1


def test_file_names_of_other_encodings_are_kept_readable(tmp_path: pathlib.Path) -> None:
    root = write(tmp_path / "a", {"cat": 1})
    image = root / "train" / "cat" / "0.png"
    image.rename(image.with_name("caf\udce9.png"))
    (source,) = open_or_prepare("folder", ["train"], str(root), str(tmp_path / "out"))
    assert names(source) == ["train/cat/caf\\xe9.png"]
