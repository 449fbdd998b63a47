"""Loggers: what each gets, what a resume adds, and a failure that the run outlives."""

import dataclasses
import importlib.util
import pathlib
import threading
import time
import uuid
from typing import Any

import pytest

import flaxres
from flaxres import Config, TrainConfig
from flaxres.errors import InputError
from flaxres.training import checkpoints, sinks
from flaxres.training.loggers import LOGGERS, End, Facts, Kind, require_loggers
from flaxres.training.metrics import Writer, read_metrics
from flaxres.training.signals import Preempted
from tests.training.test_loop import digits


class Fake:
    """A logger that keeps what it gets, fails at one of its methods, and waits at `gate`.

    Args:
      failing: the name of the method that fails, or "make".
    """

    def __init__(self, failing: str = "") -> None:
        self.failing, self.rows, self.end = failing, list[tuple[int, dict[str, float]]](), ""
        self.gate = threading.Event()
        self.gate.set()

    def make(self, facts: Facts) -> "Fake":
        self._called("make")
        return self

    def write(self, step: int, values: dict[str, float]) -> None:
        self._called("write")
        self.rows.append((step, values))

    def flush(self) -> None:
        self._called("flush")

    def close(self, end: End) -> None:
        self._called("close")
        self.end = end

    def abandon(self) -> None:
        raise RuntimeError("not heard")

    def _called(self, method: str) -> None:
        self.gate.wait()
        if method == self.failing:
            raise RuntimeError("no\nnetwork")


def use(fake: Fake, monkeypatch: pytest.MonkeyPatch, **facts: Any) -> Config:
    """Makes `fake` the logger of `train.wandb`; returns a config that uses it."""
    kind = Kind("wandb", "Fake", "json", "", fake.make, **facts)
    monkeypatch.setattr("flaxres.training.metrics.LOGGERS", (kind,))
    return Config(train=TrainConfig(wandb="project"))


@pytest.mark.parametrize("remote", [True, False])
@pytest.mark.parametrize("failing", ["make", "write", "flush", "close"])
def test_a_logger_that_fails_is_said_once(
    failing: str, remote: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    writer = Writer(tmp_path, 0, use(Fake(failing), monkeypatch, remote=remote), lines.append)
    for step in range(3):
        writer.write(step, 0.0, {"loss": 1.0})
        writer.flush()
    for _ in range(500):  # a remote one is flushed once no row waits
        if lines or failing == "close":
            break
        time.sleep(0.01)
    writer.close()
    assert lines == ["Fake gets no more metrics (no network); metrics.jsonl gets all of them"]
    assert len(read_metrics(tmp_path)) == 3


def test_a_server_without_answer_holds_nobody_up(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(sinks, "WAITING", 5)
    for rows, reason in ((3, "no answer in 0 s"), (9, "5 rows wait for an answer")):
        (tmp_path / reason).mkdir()
        fake, lines = Fake(), list[str]()
        fake.gate.clear()
        writer = Writer(tmp_path / reason, 0, use(fake, monkeypatch), lines.append)
        for step in range(rows):
            writer.write(step, 0.0, {"loss": 1.0})
            writer.flush()
        writer.close()
        expected = f"Fake gets no more metrics ({reason}); metrics.jsonl gets all of them"
        assert lines == [expected]
        fake.gate.set()
        assert len(read_metrics(tmp_path / reason)) == rows


@pytest.mark.parametrize("remote", [True, False])
def test_a_logger_gets_the_rows_in_order_and_a_remote_one_those_of_earlier_processes(
    remote: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.1, "a": null, "b": 2.0}\n')
    fake = Fake()
    writer = Writer(tmp_path, 1, use(fake, monkeypatch, remote=remote))
    for step in (2, 3):
        writer.write(step, 0.0, {"a": float(step)})
    writer.close("stopped")
    assert fake.end == "stopped"
    earlier = "(1, {'a': nan, 'b': 2.0}), " if remote else ""
    assert repr(fake.rows) == f"[{earlier}(2, {{'a': 2.0}}), (3, {{'a': 3.0}})]"


def test_a_run_ends_its_log_as_it_ends_itself(
    data_dir: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake()
    use(fake, monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    config = digits(data_dir, steps=2, wandb="project", tensorboard=False)
    stopped = dataclasses.replace(config.train, stop_after_minutes=1e-6)
    with pytest.raises(Preempted):
        flaxres.fit(dataclasses.replace(config, train=stopped), tmp_path)
    assert fake.end == "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "read_back", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            flaxres.fit(config, tmp_path)
    assert fake.end == "failed"


@pytest.mark.parametrize("kind", LOGGERS[1:], ids=lambda kind: kind.setting)
def test_a_package_that_is_not_installed_is_named(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    require_loggers(TrainConfig())
    with pytest.raises(
        InputError, match=f"train.{kind.setting}='p' .*: pip install .*{kind.package}"
    ):
        require_loggers(TrainConfig(**{kind.setting: "p"}))  # type: ignore[arg-type]


def test_a_workdir_keeps_the_name_of_its_run(tmp_path: pathlib.Path) -> None:
    facts = Facts(tmp_path, 0, Config(), "project")
    name = facts.run_id()
    assert facts.run_id() == name
    (tmp_path / "run.json").write_text('{"id"')
    assert facts.run_id() != name


def test_a_run_in_a_store_keeps_its_name_on_another_machine(
    data_dir: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, names = Fake(), list[str]()
    make = fake.make
    fake.make = lambda facts: names.append(facts.run_id()) or make(facts)  # type: ignore[method-assign]
    use(fake, monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    address = f"memory://bucket/{uuid.uuid4().hex}"
    config = digits(data_dir, steps=1, wandb="project", tensorboard=False)
    for steps in (1, 2):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"machine {steps}"))
        train = dataclasses.replace(config.train, steps=steps, extend=True)
        flaxres.fit(dataclasses.replace(config, train=train), address)
    assert names == [names[0]] * 2
    assert [step for step, _ in fake.rows if step] == [1, 1, 1, 1, 2, 2]  # training and evaluation
