"""A finished run stands by itself: its network needs neither the data nor the old folders."""

import dataclasses
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import flaxres
from flaxres import Config
from flaxres.cli import main
from flaxres.config.files import from_json
from flaxres.errors import InputError
from tests.training.test_loop import digits


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, pathlib.Path]:
    """A run whose data is deleted, moved to another folder."""
    root = tmp_path_factory.mktemp("alone")
    config = digits(
        str(root / "data"), steps=2, tensorboard=False, eval_every_epochs=9.0, devices=1
    )
    flaxres.fit(config, root / "run")
    shutil.rmtree(root / "data")
    (root / "run").rename(root / "moved")
    return config, root / "moved"


def test_load_run_needs_the_workdir_alone(
    run: tuple[Config, pathlib.Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(run[1].parent))
    with monkeypatch.context() as patch:
        patch.setattr("flaxres.training.run.open_or_prepare", None)
        model, variables, preprocess, classes = flaxres.load_run("~/moved")
    assert classes == tuple("0123456789")
    assert preprocess.size == run[0].data.eval_size
    images = np.zeros((2, preprocess.size, preprocess.size, 3), np.float32)
    assert np.isfinite(jax.device_get(model.apply(variables, images))).all()


def test_commands_need_no_data(
    run: tuple[Config, pathlib.Path],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("flaxres.training.run.open_or_prepare", None)
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "x.png", "--workdir", str(run[1]), "--json"]) == 0
    assert len(json.loads(capfd.readouterr().out)["x.png"]) == 5
    assert main(["convert", str(run[1]), "out.safetensors"]) == 0
    assert (tmp_path / "out.safetensors").exists()


def test_classes_are_checked(run: tuple[Config, pathlib.Path], tmp_path: pathlib.Path) -> None:
    shutil.copytree(run[1], tmp_path / "run")
    (tmp_path / "run" / "classes.json").write_text(json.dumps(list("9876543210")))
    with pytest.raises(InputError, match="has not the classes that the checkpoint was trained on"):
        flaxres.load_run(tmp_path / "run")


def test_evaluate_takes_other_data(
    run: tuple[Config, pathlib.Path], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for label in range(10):
        folder = tmp_path / "photos" / "mine" / str(label)
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8), (label, 0, 0)).save(folder / "0.png")
    config = from_json(run[1] / "config.json")
    assert os.path.isabs(str(config.data.data_dir))  # noqa: PTH117
    monkeypatch.chdir(tmp_path)
    data = dataclasses.replace(
        config.data,
        name="folder",
        source="photos",
        eval_split="mine",
        data_dir=str(tmp_path / "prepared"),
    )
    report = flaxres.evaluate(dataclasses.replace(config, data=data), run[1])
    assert report.examples == 10
