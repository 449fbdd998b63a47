"""The garbage collector is off while a run starts, and on while it trains."""

import gc
import pathlib
from typing import Any

import pytest

from flaxres import garbage
from flaxres.cli import main
from flaxres.training.loop import _Loop
from flaxres.training.stepper import Stepper


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    try:
        garbage.delay()
        garbage.resume()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_run_starts_without_collections_and_trains_with_them(
    data_dir: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiling, dispatching = [], []
    prepare, dispatch = Stepper.prepare, _Loop.dispatch

    def prepared(self: Stepper, *arguments: Any) -> None:
        compiling.append(gc.isenabled())
        prepare(self, *arguments)

    def dispatched(self: _Loop, *arguments: Any) -> Any:
        dispatching.append(gc.isenabled())
        return dispatch(self, *arguments)

    monkeypatch.setattr(Stepper, "prepare", prepared)
    monkeypatch.setattr(_Loop, "dispatch", dispatched)
    words = ["train", "--config", "digits", "--workdir", str(tmp_path), "--train.steps", "3"]
    words += [
        "--train.steps-per-dispatch",
        "1",
        "--train.devices",
        "1",
        "--data.data-dir",
        data_dir,
    ]
    assert main([*words, "--train.tensorboard", "False"]) == 0
    assert compiling == [False]
    assert dispatching == [False, True, True]
    assert gc.isenabled()
    assert main([*words, "--train.steps", "none"]) != 0  # a mistake ends it before
    assert gc.isenabled()
