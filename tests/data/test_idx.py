"""Files in the IDX form of MNIST, read in place."""

import gzip
import json
import pathlib
import pickle
from typing import Any

import numpy as np
import pytest

from flaxres.cli import main
from flaxres.data.datasets import open_or_prepare
from flaxres.data.decode import CentreCrop
from flaxres.data.rows import evaluation_rows
from flaxres.data.source import Source
from flaxres.errors import InputError
from tests.data.loading import load

SHAPE = (6, 5)


def idx(array: Any) -> bytes:
    """Returns an array of bytes in the IDX form."""
    head = bytes((0, 0, 8, array.ndim)) + np.asarray(array.shape, ">u4").tobytes()
    return head + array.astype(np.uint8).tobytes()


def images_of(source: Source, side: int) -> Any:
    """Returns images and labels as the loader delivers them."""
    rows = evaluation_rows(len(source), len(source), CentreCrop(side, side))
    (batch,) = load(source, rows, devices=1)
    return batch["image"], batch["label"]


def opened(root: pathlib.Path, *splits: str) -> list[Source]:
    return open_or_prepare("idx", splits, str(root))


@pytest.fixture
def arrays() -> dict[str, tuple[Any, Any]]:
    rng = np.random.default_rng(0)
    counts = {"train": 7, "t10k": 4}
    return {
        name: (rng.integers(0, 256, (n, *SHAPE), np.uint8), rng.integers(0, 3, n, np.uint8))
        for name, n in counts.items()
    }


@pytest.fixture(
    params=["{}-{}-idx{}-ubyte", "{}-{}.idx{}-ubyte.gz", "emnist-mnist-{}-{}-idx{}-ubyte"]
)
def root(
    request: pytest.FixtureRequest, tmp_path: pathlib.Path, arrays: dict[str, tuple[Any, Any]]
) -> pathlib.Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "README.txt").write_text("text")
    for split, parts in arrays.items():
        for part, array in zip(("images", "labels"), parts, strict=True):
            name = request.param.format(split, part, array.ndim)
            data = idx(array)
            (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder


def test_pixels_and_labels_are_those_of_the_files(
    root: pathlib.Path, arrays: dict[str, tuple[Any, Any]]
) -> None:
    train, test = opened(root)
    assert [source.name for source in (train, test)] == ["idx/train", "idx/test"]
    assert train.classes == test.classes == ("0", "1", "2")
    for source, (images, labels) in zip((train, test), arrays.values(), strict=True):
        found, given = images_of(source, SHAPE[1])
        assert given.tolist() == labels.tolist()
        # Of 6 x 5 pixels, the middle 5 x 5 (from the upper of two possible rows).
        grey = images[:, :5, :, None]
        np.testing.assert_array_equal(found, grey.repeat(3, -1))
    assert pickle.loads(pickle.dumps(train)).read(4) == train.read(4)


def test_a_square_image_is_decoded_to_its_own_pixels(tmp_path: pathlib.Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(3)))
    (source,) = opened(tmp_path)
    np.testing.assert_array_equal(images_of(source, 28)[0], images[..., None].repeat(3, -1))


def test_classes_have_names_and_the_digest_follows_the_content(root: pathlib.Path) -> None:
    before = opened(root)[0].digest
    (root / "classes.txt").write_text("ant\nbee\ncow\n")
    train = opened(root)[0]
    assert train.classes == ("ant", "bee", "cow")
    assert train.digest != before
    assert opened(root)[0].digest == train.digest


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("train-images-idx3-ubyte", b"", r"begins with : the rule is 00 00 08 03, unsigned"),
        ("train-images-idx3-ubyte", idx(np.zeros((2, 4, 4)))[:-1], "has 31 bytes for 2 x 4 x 4"),
        ("train-images-idx3-ubyte", idx(np.zeros((3, 4, 4))), "has 3 images and .* 2 labels"),
        ("train-images-idx3-ubyte", idx(np.zeros((2, 4))), "begins with 00 00 08 02: the rule"),
        ("train-images-idx3-ubyte.gz", b"no gzip", "can't be read .*download it again"),
        ("val-labels-idx1-ubyte", idx(np.zeros(2)), "split 'val' .* lacks its images"),
    ],
)
def test_files_that_break_the_rules_are_refused(
    tmp_path: pathlib.Path, name: str, data: bytes, message: str
) -> None:
    if not name.startswith("train-images"):
        (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((2, 4, 4))))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(2)))
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        opened(tmp_path)


def test_two_datasets_in_a_folder_and_no_files_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match="needs data.source: the folder of train-images"):
        open_or_prepare("idx", ["train"])
    with pytest.raises(InputError, match="is not a folder: give the folder of train-images"):
        opened(tmp_path / "none")
    with pytest.raises(InputError, match="holds no IDX files: give the folder"):
        opened(tmp_path)
    (tmp_path / "a-train-images-idx3-ubyte").write_bytes(idx(np.zeros((2, 4, 4))))
    (tmp_path / "b-train-images-idx3-ubyte").write_bytes(idx(np.zeros((2, 4, 4))))
    with pytest.raises(InputError, match="are images of one split: keep one dataset"):
        opened(tmp_path)


def test_the_data_commands(root: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "info", "idx", "--source", str(root), "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert {name: split["examples"] for name, split in facts["splits"].items()} == {
        "train": 7,
        "test": 4,
    }
    assert main(["data", "verify", "idx", "--source", str(root), "--decode"]) == 0
