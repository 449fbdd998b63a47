"""MLflow, trackio and Weights & Biases themselves, without a network."""

import dataclasses
import os
import pathlib
import signal
import struct
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import flaxres
from flaxres.training.metrics import read_metrics
from flaxres.training.signals import Preempted
from tests.training.test_loop import digits

ROOT = pathlib.Path(__file__).parents[2]
TIMES = ("train/images_per_second", "train/input_stall_percent")
# A run of twelve steps with a checkpoint at step 6. It is killed at step 9, once that is logged.
KILLED = """
import os, signal, sys, time
import flaxres
from flaxres.training import log
from tests.training.test_loop import digits

def write(self, step, row):
    real(self, step, row)
    while step == 9:
        (sink,) = self.writer.sinks
        if sink.log and sink._rows.empty():
            time.sleep(1.5)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.1)

real, log.Log.write = log.Log.write, write
setting = {sys.argv[2]: sys.argv[3], "log_every_steps": 1, "tensorboard": False}
flaxres.fit(digits(sys.argv[1], **setting), sys.argv[4])
"""
Curves = dict[str, list[tuple[int, float]]]
pytestmark = [
    pytest.mark.extra,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def mlflow_run(project: str) -> tuple[Any, Any]:
    """Returns a client of MLflow, and the only run of the experiment."""
    import mlflow

    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(project)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def mlflow_curves(project: str, workdir: pathlib.Path) -> Curves:
    """Returns the curves of the only run, and checks what else it has."""
    client, run = mlflow_run(project)
    assert run.info.run_name == workdir.name
    assert run.data.params["train.batch_size"] == "64"
    return {
        name: sorted(
            (point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)
        )
        for name in run.data.metrics
    }


def trackio_curves(project: str, workdir: pathlib.Path) -> Curves:
    """Returns the curves of the only run, and checks what else it has."""
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = trackio.Api().runs(project)
    assert run.name.startswith(workdir.name)
    assert run.config is not None
    assert run.config["train.batch_size"] == 64
    curves: Curves = {}
    for row in SQLiteStorage.get_logs(project, run.name, run_id=run.id):
        for name, value in row.items():
            if name not in ("step", "timestamp"):
                curves.setdefault(name, []).append((row["step"], value))
    return curves


def records(path: pathlib.Path) -> Iterator[Any]:
    """Yields the records of a file of Weights & Biases, as far as it goes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, text = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        text, at = text + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(text)
            text = b""


@pytest.fixture
def project(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A project that no other test has; the loggers write to folders of this test."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("WANDB_MODE", "offline")
    # trackio reads it once, when it is imported.
    os.environ.setdefault("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return f"p{uuid.uuid4().hex}"


def train_with_a_kill_and_a_stop(
    setting: str, project: str, data_dir: str, workdir: pathlib.Path
) -> None:
    """Trains twelve steps in three processes: one is killed at step 9, one is stopped at step 7."""
    words = [sys.executable, "-c", KILLED, data_dir, setting, project, str(workdir)]
    killed = subprocess.run(words, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    config = digits(data_dir, log_every_steps=1, tensorboard=False, **{setting: project})
    brief = dataclasses.replace(config.train, stop_after_minutes=1e-6)
    with pytest.raises(Preempted):
        flaxres.fit(dataclasses.replace(config, train=brief), workdir)
    flaxres.fit(config, workdir)


@pytest.mark.parametrize(
    ("setting", "curves"), [("mlflow", mlflow_curves), ("trackio", trackio_curves)]
)
def test_a_run_that_is_killed_and_stopped_has_one_whole_curve(
    setting: str,
    curves: Callable[[str, pathlib.Path], Curves],
    project: str,
    data_dir: str,
    tmp_path: pathlib.Path,
) -> None:
    pytest.importorskip(setting, reason="not installed")
    train_with_a_kill_and_a_stop(setting, project, data_dir, tmp_path / "run")
    got, expected = curves(project, tmp_path / "run"), dict[str, list[tuple[int, float]]]()
    for row in read_metrics(tmp_path / "run"):
        for name in row.keys() - {"step", "epoch"}:
            expected.setdefault(name, []).append((row["step"], row[name]))
    assert got.keys() == expected.keys()
    assert [step for step, _ in got["train/loss"]] == list(range(1, 13))
    assert [step for step, _ in got["eval/top1"]] == [6, 12]
    for name in TIMES:  # those of the killed process stay
        assert [step for step, _ in got.pop(name)] == [step for step, _ in expected.pop(name)]
    assert got == expected


def test_wandb_gets_all_steps_under_one_id_and_the_ends_of_the_processes(
    project: str, data_dir: str, tmp_path: pathlib.Path
) -> None:
    pytest.importorskip("wandb", reason="not installed")
    train_with_a_kill_and_a_stop("wandb", project, data_dir, tmp_path / "run")
    paths = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"), key=os.path.getmtime)
    assert len({path.name for path in paths}) == 1
    # A process that is killed leaves nothing of its last seconds.
    stopped, finished = (list(records(path)) for path in paths[1:])
    for part, last, code in ((stopped, 7, 75), (finished, 12, 0)):
        assert [r.history.step.num for r in part if r.HasField("history")] == [*range(1, last + 1)]
        assert [r.exit.exit_code for r in part if r.HasField("exit")] == [code]
    assert any(r.HasField("preempting") for r in stopped)
    assert not any(r.HasField("preempting") for r in finished)


def test_mlflow_shows_how_a_run_ended(project: str, data_dir: str, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("mlflow", reason="not installed")
    config = digits(data_dir, steps=2, tensorboard=False, mlflow=project)
    train = dataclasses.replace(config.train, stop_after_minutes=1e-6)
    with pytest.raises(Preempted):
        flaxres.fit(dataclasses.replace(config, train=train), tmp_path / "run")
    assert mlflow_run(project)[1].info.status == "KILLED"
    longer = dataclasses.replace(train, stop_after_minutes=None, keep_checkpoints=2)
    flaxres.fit(dataclasses.replace(config, train=longer), tmp_path / "run")
    run = mlflow_run(project)[1]
    assert run.info.status == "FINISHED"
    assert run.data.params["train.keep_checkpoints"] == str(config.train.keep_checkpoints)


def test_a_deleted_workdir_is_another_run(
    project: str, data_dir: str, tmp_path: pathlib.Path
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="not installed")
    config = digits(data_dir, steps=1, tensorboard=False, mlflow=project)
    for _ in range(2):
        flaxres.fit(config, tmp_path / "run")
        (tmp_path / "run").rename(tmp_path / uuid.uuid4().hex)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(project)
    assert len(client.search_runs([experiment.experiment_id])) == 2
