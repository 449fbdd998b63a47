"""The full evaluation: its files against predictions that are made another way."""

import csv
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import flaxres
from flaxres import Config, DataConfig, ModelConfig, TrainConfig
from flaxres.cli import main
from flaxres.errors import InputError
from flaxres.report import outputs as outputs_module
from flaxres.report.full import PICTURES, evaluate_fully
from flaxres.report.outputs import Outputs
from flaxres.training.run import open_data
from tests.report.conftest import Made


def read_json(made: Made) -> dict[str, Any]:
    return json.loads((made.workdir / "evaluation" / "evaluation.json").read_text())


def table(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_scores_are_those_of_the_predictions(made: Made) -> None:
    content, p, labels = read_json(made), made.probabilities, made.labels
    order = np.argsort(-p, axis=1)
    for k in (1, 2, 3, 5):
        hits = (order[:, :k] == labels[:, None]).any(1).mean()
        assert content["top"][str(k)] == pytest.approx(hits, abs=1e-12)
    assert 0.15 < content["top"]["1"] < 0.97
    assert "10" not in content["top"]
    of_label = p[np.arange(len(p)), labels]
    assert content["loss"] == pytest.approx(-np.log(of_label).mean(), rel=1e-4)
    squares = ((p - np.eye(10)[labels]) ** 2).sum(1).mean()
    assert content["brier"] == pytest.approx(squares, rel=1e-4)
    recalls = [(order[labels == i, 0] == i).mean() for i in range(10)]
    assert content["balanced_accuracy"] == pytest.approx(np.mean(recalls), abs=1e-12)
    assert (content["examples"], content["skipped"], content["step"]) == (500, 0, 30)
    assert content["digest"] == made.source.digest


def test_the_accuracy_is_that_of_evaluate(made: Made) -> None:
    report, content = flaxres.evaluate(made.config, made.workdir), read_json(made)
    assert content["top"]["1"] == report.top1
    assert content["top"]["5"] == report.top5
    assert content["loss"] == pytest.approx(report.loss, rel=1e-6)


def test_tables_count_every_image_once(made: Made) -> None:
    predicted = made.probabilities.argmax(1)
    folder = made.workdir / "evaluation"
    pairs = {
        (int(row["label"]), int(row["predicted"])): int(row["images"])
        for row in table(folder / "confusion.csv")
    }
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (made.labels, predicted), 1)
    assert pairs == {(i, j): expected[i, j] for i, j in np.argwhere(expected).tolist()}
    for i, row in enumerate(table(folder / "per_class.csv")):
        hits = expected[i, i]
        assert row["class"] == str(i)
        assert int(row["images"]) == expected[i].sum()
        assert float(row["recall"]) == pytest.approx(hits / expected[i].sum(), abs=1e-6)
        if expected[:, i].any():
            assert float(row["precision"]) == pytest.approx(hits / expected[:, i].sum(), abs=1e-6)
        else:
            assert row["precision"] == ""
        own = made.probabilities[made.labels == i, i].mean()
        assert float(row["confidence"]) == pytest.approx(own, abs=1e-5)
        others = expected[i].copy()
        others[i] = 0
        assert int(row["confused"]) == others.max()
        if others.any():
            assert others[int(row["most_confused_with"])] == others.max()


def test_mistakes_come_with_what_the_network_saw(made: Made) -> None:
    folder = made.workdir / "evaluation"
    rows = [json.loads(line) for line in (folder / "mistakes.jsonl").read_text().splitlines()]
    predicted = made.probabilities.argmax(1)
    wrong = np.flatnonzero(predicted != made.labels)
    assert sorted(row["record"] for row in rows) == wrong.tolist()
    confidences = [row["confidence"] for row in rows]
    assert confidences == sorted(confidences, reverse=True)
    for number, row in enumerate(rows):
        i = row["record"]
        assert row["label"] == str(made.labels[i])
        assert row["predicted"] == row["top"][0][0] == str(predicted[i])
        assert row["confidence"] == pytest.approx(made.probabilities[i].max(), abs=1e-5)
        assert row["file"] == made.source.file_name(i)
        assert (row["picture"] is not None) == (number < PICTURES)
        if row["picture"]:
            np.testing.assert_array_equal(Image.open(folder / row["picture"]), made.images[i])
    assert len(rows) > PICTURES
    assert len(list((folder / "mistakes").iterdir())) == PICTURES


def test_eight_devices_give_the_same(made: Made, tmp_path: pathlib.Path) -> None:
    """And an earlier evaluation in the folder leaves nothing."""
    (tmp_path / "mistakes").mkdir()
    (tmp_path / "mistakes" / "049.jpg").write_bytes(b"old")
    train = dataclasses.replace(made.config.train, devices=8)
    content = evaluate_fully(
        dataclasses.replace(made.config, train=train), made.workdir, out=tmp_path
    )
    for name, value in read_json(made).items():
        if isinstance(value, float):
            assert content[name] == pytest.approx(value, rel=1e-5), name
    assert content["top"] == read_json(made)["top"]
    ours = (made.workdir / "evaluation" / "confusion.csv").read_bytes()
    assert (tmp_path / "confusion.csv").read_bytes() == ours
    assert not (tmp_path / "mistakes" / "049.jpg").exists()


def test_images_that_can_not_be_decoded_do_not_count(
    photographs: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    root = photographs(train=8, val=5)
    data = DataConfig(
        "folder",
        str(root),
        copy=False,
        eval_split="val",
        bad_images="skip",
        image_size=16,
        eval_size=16,
        eval_resize=16,
    )
    train = TrainConfig(batch_size=8, eval_batch_size=8, devices=1)
    config = Config(ModelConfig("resnet20", depths=(1, 1, 1)), data, train=train)
    model = flaxres.ResNet20(depths=(1, 1, 1), num_classes=2)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
    flaxres.save_weights(tmp_path / "w.safetensors", variables, model)
    (source,) = open_data(data, ["val"])
    names = [source.file_name(i) for i in range(10)]
    path = root / names[2]
    path.write_bytes(path.read_bytes()[:300])
    out = tmp_path / "out"
    content = evaluate_fully(config, weights=tmp_path / "w.safetensors", out=out)
    assert (content["examples"], content["skipped"]) == (9, 1)
    lines = (out / "mistakes.jsonl").read_text().splitlines()
    mistakes = [json.loads(line) for line in lines]
    assert len(mistakes) == 9 - round(9 * content["top"]["1"]) > 0
    for row in mistakes:
        assert row["record"] != 2
        assert row["file"] == names[row["record"]]
        assert row["file"].split("/")[1] == row["label"] != row["predicted"]


def test_a_tie_counts_against_the_label() -> None:
    equal, two = np.full((2, 4), 0.25), np.array([0, 2])
    outputs = Outputs(two, two, rank=np.array([3, 3]), loss=two * 1.0, probabilities=equal)
    assert outputs.predicted.tolist() == [1, 0]
    assert not outputs.right.any()
    assert equal.min() == 0.25  # is not written to


def test_the_command_prints_json(
    made: Made, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--workdir", str(made.workdir), "--full", "--out", str(tmp_path / "out")]
    assert main([*words, "--json"]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed == json.loads((tmp_path / "out" / "evaluation.json").read_text())
    # The command may compute by other convolutions, which round otherwise.
    assert printed.keys() == read_json(made).keys()
    assert printed["ece"] == pytest.approx(read_json(made)["ece"], rel=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--out x", "--out needs --full"),
        ("--full --out /proc/nothing", "--out '/proc/nothing' can't be written"),
        ("--full --weights /nothing.safetensors", "weights without a workdir need out (--out DIR)"),
        ("--full --data.eval-split nosuch", "'nosuch'"),
        ("--full --out", "--out needs a value"),
    ],
)
def test_mistakes_are_one_line(
    words: str, message: str, made: Made, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--workdir", str(made.workdir), *words.split()]) == 2
    out, err = capfd.readouterr()
    assert not out
    assert message in err
    assert err.count("\n") == 1


def test_outputs_that_are_not_finite_or_too_large_are_refused(
    made: Made, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, variables, *_ = flaxres.load_run(made.workdir)
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), variables)
    flaxres.save_weights(tmp_path / "nan.safetensors", broken, model)
    with pytest.raises(InputError, match="not finite for 500 of 500 images"):
        evaluate_fully(made.config, weights=tmp_path / "nan.safetensors", out=tmp_path / "out")
    assert not (tmp_path / "out" / "evaluation.json").exists()
    monkeypatch.setattr(outputs_module, "LARGEST", 500 * 10 * 4 - 1)
    with pytest.raises(InputError, match=r"500 images with 10 classes .* 'test\[:10%\]'"):
        evaluate_fully(made.config, made.workdir, out=tmp_path / "out")


@pytest.mark.slow
def test_two_processes_write_the_same_files(made: Made, tmp_path: pathlib.Path) -> None:
    from tools.processes import finish, start

    shutil.copytree(made.workdir, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    words = ["-m", "flaxres.cli", "evaluate", "--workdir", str(tmp_path / "run"), "--full"]
    finish(start([*words, "--train.devices", "None"], 2))
    for name in ("confusion.csv", "mistakes/001.png"):
        ours = (made.workdir / "evaluation" / name).read_bytes()
        assert (tmp_path / "run" / "evaluation" / name).read_bytes() == ours
