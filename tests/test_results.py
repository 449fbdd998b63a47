"""The folders of results/, and the weights that come with the package."""

import argparse
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest

import flaxres
from flaxres import cli, figures
from flaxres.config.files import from_json, load_config
from flaxres.config.settings import SETTINGS, flat
from flaxres.training.metrics import read_metrics
from flaxres.weights.tags import TRAINED
from tools import check_result, results

FOLDERS = sorted(path.parent for path in results.RESULTS.glob(f"*/{results.RESULT}"))
DIGITS = results.RESULTS / "digits_resnet20"
MEGABYTES = 3


def copied(folder: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(folder, tmp_path / folder.name))


def change(folder: pathlib.Path, name: str, path: str, value: Any) -> None:
    """Changes a value of a JSON file, and seals the folder again."""
    content = json.loads((folder / name).read_text())
    *parents, last = path.split("/")
    part = content
    for parent in parents:
        part = part[parent]
    assert part[last] != value
    part[last] = value
    (folder / name).write_text(json.dumps(content))
    results.seal(folder)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_result_is_sound_and_small(folder: pathlib.Path) -> None:
    assert check_result.problems(folder) == []
    assert (folder / "metrics.jsonl").stat().st_size <= results.LARGEST_LOG
    texts = [path.read_text() for path in folder.iterdir() if path.suffix != ".png"]
    assert not [place for place in ("/tmp/", "/home/", "/root/") if place in "".join(texts)]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_result_is_of_the_recipe_that_its_command_names(folder: pathlib.Path) -> None:
    command = json.loads((folder / results.RESULT).read_text())["command"].split()
    recipe = flat(load_config(command[command.index("--config") + 1]))
    run = flat(from_json(folder / "config.json"))
    differing = {name for name in run if run[name] != recipe[name]}
    # What the machine decides, and options of the command.
    decided = {"model.dtype", "data.exif"} | {n for n in run if SETTINGS[n].facts.local}
    assert differing <= decided | {word.removeprefix("--") for word in command}


def test_a_curve_is_averaged_over_windows_of_epochs() -> None:
    points = [(0.5, 4.0), (1.5, 2.0), (2.5, 1.0), (6.0, 0.5)]
    assert results.averaged(points) == ([1.0, 2.5, 6.0], [3.0, 1.0, 0.5])


def test_results_and_their_peers_are_drawn(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, *_: drawn.append(figure))
    chosen = argparse.Namespace(names=[DIGITS.name], out=tmp_path / "curves.png")
    results.picture(chosen)
    loss, error = drawn[0].axes
    assert [line.get_label() for line in loss.lines] == [DIGITS.name, f"{DIGITS.name}, PyTorch"]
    summary = json.loads((DIGITS / "summary.json").read_text())
    assert error.lines[0].get_ydata()[-1] == 1 - summary["top1"]
    peer = json.loads((DIGITS / results.RESULT).read_text())["torch"]
    assert set(error.lines[1].get_ydata()) == {1 - peer["mean"]}


def test_the_page_of_results_is_current() -> None:
    assert results.table() in results.PAGE.read_text()


def test_a_changed_digit_of_any_file_is_found(tmp_path: pathlib.Path) -> None:
    folder = copied(DIGITS, tmp_path)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        at = next(i for i in range(len(content) // 2, len(content)) if content[i : i + 1].isdigit())
        other = b"1" if content[at : at + 1] != b"1" else b"2"
        path.write_bytes(content[:at] + other + content[at + 1 :])
        assert check_result.problems(folder), path.name
        path.write_bytes(content)
    assert check_result.problems(folder) == []


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("summary.json", "top1", 0.999, "the log and the summary"),
        ("summary.json", "step", 1, "the step"),
        ("result.json", "mean", 0.999, "our mean"),
        ("result.json", "deviation", 0.0, "our mean"),
        ("result.json", "torch/mean", 0.999, "torch mean"),
        ("result.json", "weights/sha256", "0" * 64, "the weights of the package"),
        ("result.json", "weights/correct", 1, "the accuracy of the tag"),
        ("config.json", "train/seed", 77, "the seed"),
    ],
)
def test_figures_that_contradict_each_other_are_found(
    name: str, path: str, value: Any, message: str, tmp_path: pathlib.Path
) -> None:
    folder = copied(DIGITS, tmp_path)
    change(folder, name, path, value)
    assert any(message in problem for problem in check_result.problems(folder))


def test_the_weights_of_the_package_are_small_and_licensed() -> None:
    files = [path for path in TRAINED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MEGABYTES << 20
    for folder in TRAINED.iterdir():
        info = flaxres.pretrained_info(folder.name)
        assert info.top1
        assert info.license
        assert info.num_classes == 10
        assert "Trained on" in (folder / "README.md").read_text()


def test_the_digits_are_classified_as_stated(capsys: pytest.CaptureFixture[str]) -> None:
    stated = json.loads((DIGITS / results.RESULT).read_text())["weights"]
    assert check_result.accuracy(DIGITS, None) == []
    assert f"{stated['correct']} of 500" in capsys.readouterr().out
    assert stated["correct"] >= 490


@pytest.mark.parametrize("tag", sorted(path.name for path in TRAINED.iterdir()))
def test_weights_of_the_package_load_and_classify_their_example(tag: str) -> None:
    model, variables, preprocess = flaxres.load_pretrained(tag)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    if example := flaxres.pretrained_info(tag).example:
        logits = jax.jit(model.apply)(variables, preprocess(example))
        assert preprocess.classes[int(logits.argmax())] == EXAMPLES[tag]


EXAMPLES = {"resnet9.flaxres_fashion_mnist": "ankle boot", "resnet20.flaxres_digits": "0"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["results/nothing"], "nothing: no SHA256SUMS"),
        (["results/fashion_mnist_resnet9", "--accuracy"], "needs data.source"),
        (["results/fashion_mnist_resnet9", "--again", "60"], "the run ended before step 50"),
        (["results/digits_resnet20", "--again", "5"], "no step up to 5: give at least 10"),
    ],
)
def test_what_cannot_be_checked_is_said_in_a_line(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(results.ROOT)
    monkeypatch.setattr("sys.argv", ["check_result", *arguments])
    with pytest.raises(SystemExit, match="True"):
        check_result.main()
    assert message in capsys.readouterr().out


@pytest.mark.slow
def test_a_result_is_written_and_repeated_to_the_bit(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    options = ["--model.depths", "1", "1", "1", "--train.epochs", "2", "--train.devices", "1"]
    for seed in "01":
        places = ["--workdir", str(tmp_path / seed), "--data.data-dir", str(tmp_path / "data")]
        cli.main(["train", "--config", "digits", *options, "--train.seed", seed, *places])
    given = ["--runs", str(tmp_path / "0"), str(tmp_path / "1"), "--machine", "this one"]
    monkeypatch.setattr("sys.argv", ["results", "write", "two", *given, "--command", "train"])
    results.main()
    folder = tmp_path / "results" / "two"
    assert str(tmp_path) not in "".join(
        path.read_text() for path in folder.iterdir() if path.suffix != ".png"
    )
    assert check_result.problems(folder) == []
    assert len(json.loads((folder / results.RESULT).read_text())["top1"]) == 2
    assert check_result.again(folder, None, 20) == []
    assert (
        "2 rows of the log compared to the bit, up to step 20; the largest relative difference is 0"
        in capsys.readouterr().out
    )
    change(folder, "config.json", "optim/learning_rate", 0.2)
    assert any(
        "step 10: train/learning_rate" in line for line in check_result.again(folder, None, 10)
    )


@pytest.mark.parametrize(
    ("same", "factor", "problems"),
    [(True, 1.0, 0), (True, 1 + 1e-6, 1), (False, 1 + 1e-6, 0), (False, 1.001, 1)],
)
def test_other_versions_may_differ_by_little(
    same: bool,
    factor: float,
    problems: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = {row["step"]: dict(row) for row in read_metrics(DIGITS) if "train/loss" in row}
    first = min(rows)
    rows[first]["train/loss"] *= factor
    monkeypatch.setattr(check_result, "_trained", lambda *_: rows)
    monkeypatch.setattr(check_result, "same_versions", lambda _: same)
    found = check_result.again(DIGITS, None, first)
    assert len(found) == problems
    assert ("to the bit" if same else "with other code or packages") in capsys.readouterr().out
