"""Damage of a prepared dataset is detected and named, at any byte; shrinking keeps its labels."""

import io
import json
import os
import pathlib
import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

from flaxres.cli import main
from flaxres.config.files import load_config, to_json
from flaxres.data import integrity
from flaxres.data._naming import version
from flaxres.data.datasets import open_or_prepare
from flaxres.data.prepare import prepare, shrink
from flaxres.data.sources import describe, open_source, open_splits, verify
from flaxres.errors import InputError


@pytest.fixture
def dataset(
    photographs: Callable[..., pathlib.Path], data_dir: str
) -> Iterator[tuple[str, pathlib.Path, pathlib.Path]]:
    """Prepares a folder; yields its source, its place and the file of its training split.

    The file is restored afterwards.
    """
    root = photographs(30, 3, (120, 90))
    place, _ = prepare("folder", str(root), data_dir)
    (file,) = place.glob("*train*array_record*")
    sound = file.read_bytes()
    yield str(root), place, file
    file.write_bytes(sound)


def test_a_sound_dataset_verifies_and_its_digests_are_of_its_examples(
    dataset: tuple[str, pathlib.Path, pathlib.Path], data_dir: str
) -> None:
    root, place, _ = dataset
    verdict = verify("folder", root, data_dir, decode=True)
    assert verdict.problems == []
    assert set(verdict.files.values()) == {"sound"}
    assert verdict.counts == {"folder/train": {"JPEG": 60}, "folder/val": {"JPEG": 6}}
    facts = describe("folder", root, data_dir)
    assert facts["splits"]["train"]["sha256"] == integrity.read(place)["contents"]["train"]
    assert facts["splits"]["train"]["sha256"] != facts["splits"]["val"]["sha256"]


def test_another_image_of_the_same_size_gives_another_digest(
    photographs: Callable[..., pathlib.Path], data_dir: str
) -> None:
    root = photographs(2, 1)
    (before,) = open_or_prepare("folder", ["train"], str(root), data_dir)
    path = root / "train" / "red" / "0.jpg"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(bytes(data))
    (after,) = open_or_prepare("folder", ["train"], str(root), data_dir)
    assert after.digest != before.digest


@pytest.mark.parametrize("seed", range(4))
def test_fault_27_every_flipped_byte_is_found_and_its_file_named(
    dataset: tuple[str, pathlib.Path, pathlib.Path], data_dir: str, seed: int
) -> None:
    root, _, file = dataset
    sound, choose = file.read_bytes(), random.Random(seed)
    for _ in range(50):
        at = choose.randrange(len(sound))
        file.write_bytes(
            sound[:at] + bytes([sound[at] ^ 1 << choose.randrange(8)]) + sound[at + 1 :]
        )
        verdict = verify("folder", root, data_dir)
        assert verdict.files[file.name] == "changed", at
        assert any(file.name in problem for problem in verdict.problems)


def test_a_record_that_a_flipped_byte_hit_is_not_read_as_another(
    dataset: tuple[str, pathlib.Path, pathlib.Path], data_dir: str
) -> None:
    """Reads without the digests, as training does: records are correct, or refused by name."""
    root, _, file = dataset
    source = open_source("folder", "train", root, data_dir)
    expected, sound, refused = [source.read(i) for i in range(60)], file.read_bytes(), 0
    for at in range(100, len(sound), len(sound) // 40):
        file.write_bytes(sound[:at] + bytes([sound[at] ^ 0x10]) + sound[at + 1 :])
        source = open_source("folder", "train", root, data_dir)
        for i in range(60):
            try:
                assert source.read(i) == expected[i]
            except InputError as error:
                assert file.name in str(error)  # noqa: PT017
                assert f"record {i}" in str(error)  # noqa: PT017
                refused += 1
    assert refused > 30


def test_fault_27_a_cut_file_is_refused_before_anything_is_read(
    dataset: tuple[str, pathlib.Path, pathlib.Path], data_dir: str
) -> None:
    root, _, file = dataset
    sound = file.read_bytes()
    assert len(sound) > 2 * 65536
    for size in (65536, (len(sound) - 1) // 65536 * 65536, len(sound) - 1, 0):
        os.truncate(file, size)
        with pytest.raises(
            InputError,
            match=f"{file.name}.* has {size:,} bytes and was written with {len(sound):,}",
        ):
            open_splits("folder", ["train"], root, data_dir)
        assert any(file.name in problem for problem in verify("folder", root, data_dir).problems)
        file.write_bytes(sound)
    file.unlink()
    with pytest.raises(InputError, match=f"{file.name}.* is missing"):
        open_splits("folder", ["train"], root, data_dir)


def test_fault_27_a_cut_file_without_digests_names_every_record_that_is_gone(
    dataset: tuple[str, pathlib.Path, pathlib.Path], data_dir: str
) -> None:
    """Removes the digests, which datasets that TFDS prepared lack.

    array_record then returns None without an error, which must not pass for an example.
    """
    root, place, file = dataset
    digests = (place / integrity.FILE).read_bytes()
    (place / integrity.FILE).unlink()
    sound = file.read_bytes()
    try:
        for blocks in range((len(sound) - 1) // 65536 + 1):
            os.truncate(file, blocks * 65536)
            problems = verify("folder", root, data_dir).problems
            assert problems
            assert all(file.name in problem for problem in problems)
            file.write_bytes(sound)
    finally:
        (place / integrity.FILE).write_bytes(digests)


def test_shrinking_keeps_order_labels_and_names(
    dataset: tuple[str, pathlib.Path, pathlib.Path], data_dir: str
) -> None:
    root, _, _ = dataset
    sources = {split: open_source("folder", split, root, data_dir) for split in ("train", "val")}
    name, place, tally = shrink(sources, 45, 85, data_dir)
    assert name.startswith("folder/")
    assert name.endswith(f"_{sources['train'].digest[:8]}_45px_q85")
    assert place.name == version(name.partition("/")[0])
    assert tally.counts["train"] == {"shrunk": 60}
    small = {
        source.name.rpartition("/")[2]: source for source in open_splits(name, (), None, data_dir)
    }
    for split, source in sources.items():
        assert small[split].classes == source.classes
        for i in range(len(source)):
            assert (small[split].file_name(i), small[split].read(i)[1]) == (
                source.file_name(i),
                source.read(i)[1],
            )
    data, _ = small["train"].read(3)
    assert Image.open(io.BytesIO(data)).size == (60, 45)
    assert len(data) < len(sources["train"].read(3)[0])
    with pytest.raises(InputError, match="the rule is > 0, and 1 to 100"):
        shrink(sources, 45, 101, data_dir)


def test_the_data_commands(
    dataset: tuple[str, pathlib.Path, pathlib.Path],
    data_dir: str,
    tmp_path: pathlib.Path,
    capfd: pytest.CaptureFixture,
) -> None:
    root, _, file = dataset
    place_options = ("--source", root, "--data-dir", data_dir)

    def run(*words: str) -> str:
        assert main(words) == 0, capfd.readouterr().err
        return capfd.readouterr().out

    assert "files: 5 of 5 agree" in run("data", "verify", "folder", "--decode", *place_options)
    shrunk = json.loads(
        run("data", "shrink", "folder", "--short-side", "40", "--json", *place_options)
    )
    assert (
        json.loads(run("data", "info", shrunk["name"], "--data-dir", data_dir, "--json"))["splits"][
            "train"
        ]["examples"]
        == 60
    )
    sheet = tmp_path / "sheet.png"
    small = "DataConfig(image_size=24, eval_size=24, eval_resize=28)"
    (recipe := tmp_path / "recipe.py").write_text(
        f"from flaxres import *\nconfig = Config(data={small})\n"
    )
    (recorded := tmp_path / "config.json").write_text(to_json(load_config(str(recipe))))
    sheets = []
    for config in (recipe, recorded):
        run(
            "data", "info", "folder", "--sheet", str(sheet), "--config", str(config), *place_options
        )
        sheets.append(np.asarray(Image.open(sheet)))
    np.testing.assert_array_equal(*sheets)
    assert sheets[0].std() > 10
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert main(["data", "verify", "folder", *place_options]) == 2
    assert file.name in capfd.readouterr().err
    assert main(["data", "info", "folder", "--config", "configs/folder.py", *place_options]) == 2
    assert "--config needs --sheet" in capfd.readouterr().err
    (pathlib.Path(root) / "train" / "red" / "bad.jpg").write_text("text")
    assert main(["data", "prepare", "folder", "--bad-images", "error", *place_options]) == 2
    assert "red/bad.jpg: this is no JPEG" in capfd.readouterr().err
    run("data", "prepare", "folder", *place_options)
    assert main(["data", "prepare", "folder", "--bad-images", "error", *place_options]) == 2
    assert "prepared without 1 images that can't be decoded" in capfd.readouterr().err
    with pytest.raises(InputError, match="prepared without 1 images"):
        open_or_prepare("folder", ["train"], root, str(data_dir), bad_images="error")
    assert open_or_prepare("folder", ["train"], root, str(data_dir))
