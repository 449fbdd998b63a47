"""Only what flaxres wrote counts in `checkpoints/`: other names neither stop nor mislead a run."""

import os
import pathlib
import shutil
import time

import pytest

from flaxres.cli import main
from flaxres.training.checkpoints import Checkpoints
from flaxres.training.verification import DIGESTS, problem, steps
from tests.training.test_checkpoints import like, state

STRAY = ("010", "\u00b2", "1\u0661", "+7", "30.bak", "tmp", "7 ")


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Checkpoints of steps 10 and 20, with folders and a file of others beside them."""
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder, writing=True) as checkpoints:
        for step in (10, 20):
            checkpoints.save(state(step), step, {})
    for name in STRAY:
        shutil.copytree(folder / "20", folder / name)
    (folder / "99").write_text("a file")
    return folder


def test_other_names_are_no_steps_and_stay(
    folder: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert steps(folder) == [20, 10]
    assert main(["checkpoints", str(folder.parent)]) == 0
    assert capfd.readouterr().out.count("sound") == 2
    said: list[str] = []
    with Checkpoints(folder, writing=True, say=said.append) as checkpoints:
        assert checkpoints.step == 20
        assert int(checkpoints.restore(like(state(20))).step) == 20
        checkpoints.save(state(30), 30, {})
        checkpoints.read_back(state(30))
    assert said == []
    assert steps(folder) == [30, 20, 10]
    assert {*STRAY, "99"} <= {path.name for path in folder.iterdir()}


def test_leftovers_from_the_future_do_not_get_the_digests(folder: pathlib.Path) -> None:
    leftover = folder / "30.orbax-checkpoint-tmp-other"
    leftover.mkdir()
    os.utime(leftover, (time.time() + 10**6,) * 2)
    with Checkpoints(folder, writing=True) as checkpoints:
        checkpoints.save(state(30), 30, {})
        checkpoints.read_back(state(30))
    assert problem(folder / "30") == ""
    assert not (leftover / DIGESTS).exists()
