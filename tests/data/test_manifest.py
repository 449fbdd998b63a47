"""Lists of images, read in place."""

import json
import pathlib
import shutil

import pytest
from PIL import Image

from flaxres import DataConfig
from flaxres.cli import main
from flaxres.data.datasets import open_or_prepare
from flaxres.data.source import Source
from flaxres.errors import InputError
from tests.data.test_folders import names


def opened(source: pathlib.Path, *splits: str) -> list[Source]:
    return open_or_prepare("manifest", splits, str(source))


def labels(source: Source) -> list[int]:
    return [source.read(i)[1] for i in range(len(source))]


def write(root: pathlib.Path, name: str, *lines: str) -> pathlib.Path:
    """Writes a list of three images, which it makes."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    for i in range(3):
        Image.new("RGB", (9 + i, 8), (40 * i, 0, 0)).save(root / "images" / f"{i}.png")
    (root / name).write_text("\n".join(lines))
    return root


LINES = ("images/2.png,dog", "images/0.png,cat", "images/1.png,dog")
OBJECTS = tuple(
    json.dumps({"path": path, "label": label})
    for path, _, label in (line.partition(",") for line in LINES)
)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("train.csv", ("path,label", *LINES)),
        ("train.csv", ("\ufeffsize,file_name,label", *(f"3,{line}" for line in LINES))),
        ("train.csv", ("label,path", *(",".join(line.split(",")[::-1]) for line in LINES))),
        ("train.jsonl", (*OBJECTS, "", "")),
    ],
)
def test_the_records_are_in_the_order_of_the_lines(
    tmp_path: pathlib.Path, name: str, lines: tuple[str, ...]
) -> None:
    (train,) = opened(write(tmp_path, name, *lines))
    assert train.name == "manifest/train"
    assert names(train) == ["images/2.png", "images/0.png", "images/1.png"]
    assert labels(train) == [1, 0, 1]
    assert train.classes == ("cat", "dog")
    assert train.read(1)[0] == (tmp_path / "images" / "0.png").read_bytes()
    (alone,) = opened(tmp_path / name)
    assert alone.digest == train.digest


def test_whole_numbers_are_the_labels_and_can_have_names(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "train.csv", "path,label", "images/0.png,3", "images/1.png,1")
    lines = ('{"path": "images/2.png", "label": 2}', '{"path": "images/1.png", "label": 0}')
    write(tmp_path, "val.jsonl", *lines)
    train, val = opened(tmp_path)
    assert (labels(train), labels(val)) == ([3, 1], [2, 0])
    assert train.classes == val.classes == ("0", "1", "2", "3")
    (tmp_path / "classes.txt").write_text("ant\nbee\ncow\ndog\neel\n")
    assert opened(tmp_path)[0].classes == ("ant", "bee", "cow", "dog", "eel")


def test_numbers_in_quotes_are_names_in_json(tmp_path: pathlib.Path) -> None:
    line = json.dumps({"path": "images/0.png", "label": "7"})
    assert opened(write(tmp_path, "train.jsonl", line))[0].classes == ("7",)


def test_photographs_of_lists_are_turned_upright() -> None:
    assert [DataConfig(name).uses_exif for name in ("manifest", "folder", "parquet", "idx")] == [
        True,
        True,
        False,
        False,
    ]


def test_paths_may_be_absolute_and_spaces_belong_to_them(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "two words, and more.png"
    write(tmp_path, "train.csv", "path,label", f'"{path}",cat')
    shutil.copy(tmp_path / "images" / "0.png", path)
    (train,) = opened(tmp_path)
    assert names(train) == [str(path)]
    assert train.read(0)[0] == path.read_bytes()


@pytest.mark.parametrize("inside", ["../b/0.png", "images/../../b/0.png", "{}/b/0.png"])
def test_images_outside_of_the_folder_are_refused_unless_it_links_to_them(
    tmp_path: pathlib.Path, inside: str
) -> None:
    write(tmp_path / "a", "train.csv", "path,label", f"{inside.format(tmp_path)},cat")
    shutil.copytree(tmp_path / "a" / "images", tmp_path / "b")
    with pytest.raises(InputError, match="line 2 of .* lies outside of .*: the rule is images"):
        opened(tmp_path / "a")
    (tmp_path / "a" / "linked").symlink_to(tmp_path / "b")
    write(tmp_path / "a", "train.csv", "path,label", "linked/0.png,cat")
    assert len(opened(tmp_path / "a")[0]) == 1


def test_the_digest_follows_labels_and_files(tmp_path: pathlib.Path) -> None:
    root = write(tmp_path, "train.csv", "path,label", *LINES)
    digests = [opened(root)[0].digest]
    write(tmp_path, "train.csv", "path,label", *LINES[:2], "images/1.png,cat")
    digests.append(opened(root)[0].digest)
    Image.new("RGB", (5, 5)).save(tmp_path / "images" / "1.png")
    digests.append(opened(root)[0].digest)
    assert len(set(digests)) == 3
    assert opened(root)[0].digest == digests[2]


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("train.csv", ("name,label", *LINES), "has the columns name, label: the rule is path"),
        ("train.csv", LINES, "has the columns images/2.png, dog: the rule is path"),
        ("train.csv", (), "has the columns none: the rule is path"),
        ("train.csv", ("path,label",), "train.csv' lists no image: remove it"),
        ("train.csv", ("path,label", LINES[0], "images/1.png"), "line 3 of .*: the rule is a path"),
        ("train.csv", ("path,label", ",dog"), "line 2 of .*: the rule is a path and a label"),
        ("train.csv", ("path,label", "no.png,dog"), "line 2 of .*: there is no image .*no.png"),
        ("train.csv", ("path,label", "images,dog"), "line 2 of .*images' is no file"),
        ("train.csv", ("path,label", LINES[0], "images/1.png,1"), "names alone, or whole numbers"),
        ("train.csv", ("path,label", '"images/0.png,dog'), "can't be read .*write it again"),
        ("train.jsonl", (OBJECTS[0], "{"), "line 2 of .*: the rule is a path and a label"),
        ("train.jsonl", ("[1, 2]",), "line 1 of .*: the rule is a path and a label"),
        ("train.jsonl", ('{"path": "images/0.png", "label": 1.5}',), "line 1 of .*whole number"),
        ("train.jsonl", ('{"path": "images/0.png", "label": true}',), "line 1 of .*whole number"),
        ("train.jsonl", ('{"path": "images/0.png", "label": null}',), "line 1 of .*whole number"),
        ("train.jsonl", (f'{{"path": "images/0.png", "label": {10**30}}}',), "line 1 of .*whole"),
        ("train.csv", ("path,label", "images/0.png,1000000"), "has the label 1,000,000: the rule"),
        ("my list.csv", ("path,label", *LINES), "names no split: the rule is train.csv"),
    ],
)
def test_lists_that_break_the_rules_are_refused(
    tmp_path: pathlib.Path, name: str, lines: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        opened(write(tmp_path, name, *lines))


def test_a_class_that_train_lacks_is_refused(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "train.csv", "path,label", *LINES)
    write(tmp_path, "val.csv", "path,label", "images/0.png,eel")
    with pytest.raises(InputError, match="line 2 of .*val.csv' has the class 'eel', which is not"):
        opened(tmp_path)


def test_two_lists_of_a_split_and_no_lists_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match="needs data.source: the folder of lists"):
        open_or_prepare("manifest", ["train"])
    with pytest.raises(InputError, match="is no folder and no .csv or .jsonl"):
        opened(tmp_path / "none")
    with pytest.raises(InputError, match="holds no .csv and no .jsonl: give the folder of lists"):
        opened(tmp_path)
    write(tmp_path, "train.csv", "path,label", *LINES)
    write(tmp_path, "train.jsonl", *OBJECTS)
    with pytest.raises(InputError, match="split 'train' has two lists: keep one"):
        opened(tmp_path)


def test_slices_of_sorted_lists_are_refused(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "train.csv", "path,label", *sorted(LINES))
    with pytest.raises(InputError, match="would lack classes, since the records"):
        opened(tmp_path, "train[:50%]")


def test_the_data_commands(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "train.csv", "path,label", *LINES)
    assert main(["data", "info", "manifest", "--source", str(tmp_path), "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["splits"]["train"]["examples"] == 3
    assert facts["report"]["classes"] == {"train": {"cat": 1, "dog": 2}}
    assert main(["data", "verify", "manifest", "--source", str(tmp_path), "--decode"]) == 0
    (tmp_path / "images" / "0.png").write_bytes(b"\x89PNG cut")
    assert main(["data", "verify", "manifest", "--source", str(tmp_path), "--decode"]) == 2
