"""The garbage collector is off while a run starts, and not for long."""

import gc
import pathlib
import time
from typing import Any

import pytest

from flaxres import garbage
from flaxres.cli import main
from flaxres.training.stepper import Stepper


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    try:
        garbage.delay()
        garbage.resume()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_collector_comes_back_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "SECONDS", 0.01)
    garbage.delay()
    for _ in range(1000):
        if gc.isenabled():
            break
        time.sleep(0.01)
    assert gc.isenabled()
    garbage.resume()
    assert gc.isenabled()


def test_a_run_starts_without_collections(
    data_dir: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiling = []
    prepare = Stepper.prepare

    def prepared(self: Stepper, *arguments: Any) -> None:
        compiling.append(gc.isenabled())
        prepare(self, *arguments)

    monkeypatch.setattr(garbage, "SECONDS", 1000.0)
    monkeypatch.setattr(Stepper, "prepare", prepared)
    words = ["train", "--config", "digits", "--workdir", str(tmp_path), "--train.steps", "3"]
    words += ["--train.devices", "1", "--data.data-dir", data_dir, "--train.tensorboard", "False"]
    assert main(words) == 0
    assert compiling == [False]
    assert gc.isenabled()
    assert main([*words, "--train.steps", "none"]) != 0  # a mistake ends it before
    assert gc.isenabled()
