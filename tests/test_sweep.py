"""Several seeds of a config, `flaxres sweep`."""

import json
import pathlib
import statistics

import pytest

from flaxres import Config
from flaxres.cli import main
from flaxres.cli._sweep import summary, table

TINY = "--model.depths 1 1 1 --train.devices 1 --train.steps 4 --train.progress False"


def words(data_dir: str, workdir: pathlib.Path, *more: str) -> list[str]:
    folders = ["--workdir", str(workdir), "--data.data-dir", data_dir]
    return ["sweep", "--config", "digits", *folders, *TINY.split(), *more]


@pytest.mark.slow
def test_seeds_train_in_their_own_folders_and_more_are_added(
    data_dir: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(seeds: str) -> dict[str, dict[str, float]]:
        assert main(words(data_dir, tmp_path, "--seeds", seeds, "--train.seed", "3", "--json")) == 0
        found: dict[str, dict[str, float]] = json.loads(capsys.readouterr().out)
        assert json.loads((tmp_path / "sweep.json").read_text()) == found
        return found

    first = run("1")
    log = (tmp_path / "seed3" / "metrics.jsonl").read_bytes()
    facts = run("2")
    assert (tmp_path / "seed3" / "metrics.jsonl").read_bytes() == log, "not trained again"
    assert list(facts["runs"]) == ["3", "4"]
    assert facts["runs"]["3"] == first["runs"]["3"] != facts["runs"]["4"]
    for seed in (3, 4):
        config = json.loads((tmp_path / f"seed{seed}" / "config.json").read_text())
        assert config["train"]["seed"] == seed


@pytest.mark.slow
def test_the_code_of_a_seed_that_fails_is_that_of_the_sweep(
    data_dir: str, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "seed0").write_text("no folder")
    with pytest.raises(SystemExit) as ended:
        main(words(data_dir, tmp_path))
    assert ended.value.code == 2
    said = capfd.readouterr().err
    assert "seed 0 ended with code 2: start the same command again" in said
    assert not (tmp_path / "sweep.json").exists()


@pytest.mark.slow
def test_a_sweep_at_an_address(
    data_dir: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = words(data_dir, tmp_path, "--seeds", "1", "--json")
    command[command.index("--workdir") + 1] = f"file://{tmp_path}/sweep"
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text()) == found
    assert (tmp_path / "sweep" / "recipe.json").exists()
    summary = json.loads((tmp_path / "sweep" / "seed0" / "summary.json").read_text())
    assert found["runs"]["0"] == summary


def test_mean_and_deviation_are_those_of_a_sample(tmp_path: pathlib.Path) -> None:
    accuracies = [0.5, 0.7, 0.9]
    for seed, top1 in enumerate(accuracies):
        folder = tmp_path / f"seed{seed}"
        folder.mkdir()
        facts = {"top1": top1, "loss": 1.0, "seconds": 60.0} | ({"top5": 1.0} if seed else {})
        (folder / "summary.json").write_text(json.dumps(facts))
    found = summary(Config(), tmp_path, range(3))
    deviation = statistics.stdev(accuracies)
    assert found["top1"] == pytest.approx(
        {"mean": 0.7, "deviation": deviation, "standard_error": deviation / 3**0.5}
    )
    assert "top5" not in found, "not all runs have it"
    lines = table(found)
    assert lines[0].split() == ["seed", "top-1", "%", "loss", "minutes"]
    assert lines[-2].split() == ["mean", "70.00", "1.0000", "1.0"]
    assert lines[-1].split() == ["deviation", "20.00", "0.0000", "0.0"]
    alone = summary(Config(), tmp_path, range(1))
    assert alone["top1"] == {"mean": 0.5, "deviation": None, "standard_error": None}
    assert table(alone)[-1].split() == ["deviation"]


def test_a_number_of_seeds_that_is_none_is_refused(
    data_dir: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(data_dir, tmp_path / "run", "--seeds", "0")) == 2
    assert "--seeds='0': the rule is a whole number > 0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
