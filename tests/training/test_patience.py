"""Runs that end early, by their evaluations or after some minutes, and runs that are extended."""

import dataclasses
import json
import pathlib

import pytest

import flaxres
from flaxres import Config, TrainConfig
from flaxres.errors import InputError
from flaxres.training import metrics
from flaxres.training.evaluation import Report
from flaxres.training.patience import Patience
from flaxres.training.provenance import Progress
from flaxres.training.run import prepare_run
from flaxres.training.signals import Preempted
from tests.training.test_loop import digits


def resting(data_dir: str, **train: object) -> Config:
    """Returns a run whose weights rest and whose statistics move, so that accuracies waver."""
    config = digits(data_dir, steps=60, **train)
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, learning_rate=0.0))


def unwarmed(data_dir: str, **train: object) -> Config:
    """Returns a run whose rate falls from the first step on."""
    config = digits(data_dir, **train)
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, warmup_epochs=0.0))


def end(figures: dict[int, float], patience: int) -> int:
    """Returns the step of the first of `patience` evaluations in a row that beat none before."""
    steps = sorted(figures)
    for i in range(patience, len(steps)):
        if max(figures[step] for step in steps[i - patience + 1 : i + 1]) <= max(
            figures[step] for step in steps[: i - patience + 1]
        ):
            return steps[i]
    return steps[-1]


def evaluations(folder: pathlib.Path, name: str) -> dict[int, float]:
    rows = metrics.read_metrics(folder)
    return {row["step"]: row[name] for row in rows if row.get(name) is not None}


@pytest.mark.slow
def test_training_ends_when_evaluations_are_no_better_and_goes_on_with_more_patience(
    data_dir: str, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flaxres.fit(resting(data_dir), tmp_path / "whole")
    found = evaluations(tmp_path / "whole", "eval/top1")
    ends = [end(found, patience) for patience in (1, 2)]
    assert ends[0] < ends[1] < 60, f"choose another seed: {found}"
    for patience, last in enumerate(ends, 1):
        state = flaxres.fit(resting(data_dir, patience=patience), tmp_path / "run")
        assert int(state.step) == last
        assert evaluations(tmp_path / "run", "eval/top1") == {
            step: top1 for step, top1 in found.items() if step <= last
        }
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["step"] == last
        assert f"step {last} is the last one: top1 has not been better" in capfd.readouterr().err
    flaxres.fit(resting(data_dir, patience=2), tmp_path / "run")
    assert "this run is finished; to train longer, give a larger" in capfd.readouterr().err


def test_a_run_stops_after_some_minutes_and_resumes(
    data_dir: str, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Preempted) as stopped:
        flaxres.fit(digits(data_dir, stop_after_minutes=1e-6), tmp_path)
    assert (stopped.value.code, stopped.value.step) == (75, 1)
    said = "stopped by train.stop_after_minutes=1e-06; step 1 is saved"
    assert said in capfd.readouterr().err
    assert int(flaxres.fit(digits(data_dir), tmp_path).step) == 12


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_never_the_best(loss: float) -> None:
    patience = Patience(TrainConfig(patience=2, monitor="loss"), Progress())
    for value in (loss, loss):
        patience.see(Report(0.5, None, value, 10, 1))
    assert patience.over
    assert str(patience) == "loss has not been finite in 2 evaluations"
    patience.see(Report(0.5, None, 2.0, 10, 1))
    assert (patience.best, patience.waited) == (2.0, 0)


@pytest.mark.slow
def test_a_finished_run_is_extended_and_says_what_that_does_to_the_schedule(
    data_dir: str, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flaxres.fit(unwarmed(data_dir), tmp_path)
    capfd.readouterr()
    with pytest.raises(InputError, match="train.steps: 12 -> 18"):
        flaxres.fit(unwarmed(data_dir, steps=18), tmp_path)
    for steps, message in ((6, "train.steps=6: the run has train.steps=12"), (None, "=None")):
        with pytest.raises(InputError, match=message):
            flaxres.fit(unwarmed(data_dir, steps=steps, extend=True), tmp_path)
    longer = unwarmed(data_dir, steps=18, extend=True)
    state = flaxres.fit(longer, tmp_path)
    rate = float(prepare_run(longer).schedule(12))
    said = f"extended from 12 to 18 steps: the learning rate at step 12 is {rate:.3g}, and was 0 by"
    assert said in capfd.readouterr().err
    assert int(state.step) == 18
    assert json.loads((tmp_path / "summary.json").read_text())["step"] == 18
    flaxres.fit(unwarmed(data_dir, steps=18), tmp_path)
    assert "step 18 was the last one" in capfd.readouterr().err
