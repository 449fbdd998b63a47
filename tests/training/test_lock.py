"""A workdir has one writer: a live one is named, a dead one's lock is taken over at once."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import jax.numpy as jnp
import pytest

from flaxres.cli import main
from flaxres.data.datasets import ensure_prepared
from flaxres.errors import InputError
from flaxres.training import hosts, lock
from flaxres.training.checkpoints import Checkpoints
from flaxres.training.lock import acquire, lock_workdir
from flaxres.training.lock_file import LockFile
from flaxres.training.lock_holder import Holder, this_process
from flaxres.training.state import State
from flaxres.training.workdir import CHECKPOINTS, LOCK

ROOT = pathlib.Path(__file__).parents[2]
HOLD = "import sys, time, pathlib; from flaxres.training.lock import acquire; "
HOLD += "from flaxres.training.lock_file import LockFile; "
HOLD += "acquire(LockFile(pathlib.Path(sys.argv[1]))); print('held', flush=True); time.sleep(100)"


@contextlib.contextmanager
def other_process(path: pathlib.Path) -> Iterator[subprocess.Popen[str]]:
    """Runs a process that holds the lock until it is killed."""
    words = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def written(path: pathlib.Path, **changes: object) -> Holder:
    """Writes the lock of a process that this machine does not run."""
    holder = dataclasses.replace(this_process(), **changes)
    path.write_text(json.dumps(dataclasses.asdict(holder)))
    return holder


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / LOCK


def test_a_second_run_is_refused_by_name_and_a_killed_one_is_not_in_the_way(
    path: pathlib.Path, data_dir: str, capfd: pytest.CaptureFixture[str]
) -> None:
    ensure_prepared("digits", data_dir=data_dir)
    words = ["train", "--config", str(ROOT / "configs" / "digits.py"), "--workdir"]
    words += [str(path.parent), "--data.data-dir", data_dir, "--train.steps", "1"]
    with other_process(path) as process:
        capfd.readouterr()
        assert main(words) == 2
        error = capfd.readouterr().err
        since = json.loads(path.read_text())["since"]
        assert f"is written to by process {process.pid} on " in error
        assert f"since {since}: wait until that run ends" in error
        assert error.count("\n") == 1
        assert sorted(file.name for file in path.parent.iterdir()) == [LOCK]
        process.kill()
        process.wait()
        begun = time.monotonic()
        acquire(LockFile(path)).release()
        assert time.monotonic() - begun < 1
    assert not path.exists()


def test_the_lock_of_a_process_number_that_another_process_has_now_is_stale(
    path: pathlib.Path,
) -> None:
    written(path, started="1")
    acquire(LockFile(path)).release()
    written(path)
    with pytest.raises(InputError, match=f"process {os.getpid()} on "):
        acquire(LockFile(path))


def test_on_another_machine_the_beats_tell_the_living_from_the_dead(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STALE_SECONDS", 1.0)
    written(path, machine="another", host="node7")
    os.utime(path, (time.time() - 100,) * 2)
    acquire(LockFile(path)).release()  # no beat for longer than the limit

    written(path, machine="another", host="node7")
    os.utime(path, (time.time() + 1000,) * 2)  # by a clock that is wrong
    begun = time.monotonic()
    acquire(LockFile(path)).release()
    assert 0.9 < time.monotonic() - begun < 5

    written(path, machine="another", host="node7")
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.2):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(InputError, match="on node7 since"):
            acquire(LockFile(path))
    finally:
        ended.set()
        thread.join()


def test_a_lock_cut_short_is_taken_over(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.3)
    path.write_text('{"host": ')
    held = acquire(LockFile(path))
    assert LockFile(path).read() == held.holder
    held.release()


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_find_a_stale_lock_one_gets_it(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:

        def refused(*_: object) -> None:
            raise PermissionError("no links here")

        monkeypatch.setattr(pathlib.Path, "hardlink_to", refused)
    written(path, started="1")

    def attempt(_: int) -> lock.Lock | None:
        try:
            return acquire(LockFile(path))
        except InputError:
            return None

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        held = [result for result in pool.map(attempt, range(16)) if result is not None]
    (winner,) = held
    assert LockFile(path).read() == winner.holder
    winner.release()
    assert not list(path.parent.iterdir())


def test_a_deleted_lock_is_written_again_and_a_lost_one_ends_the_run(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    held = acquire(LockFile(path))
    before = path.stat().st_mtime_ns
    time.sleep(0.3)
    assert path.stat().st_mtime_ns > before
    path.unlink()
    held.require()
    assert LockFile(path).read() == held.holder
    other = written(path, host="node7", token="other")
    with pytest.raises(InputError, match="was taken over by process .* on node7"):
        held.require()
    held.release()
    assert LockFile(path).read() == other


def test_a_save_requires_the_lock(path: pathlib.Path) -> None:
    held = acquire(LockFile(path))
    other = written(path, host="node7", token="other")
    folder = path.parent / CHECKPOINTS
    with (
        Checkpoints(folder, writing=True, lock=held) as checkpoints,
        pytest.raises(InputError, match="was taken over by process .* on node7"),
    ):
        checkpoints.save(State(jnp.zeros((), jnp.int32), {}, {}, ()), 1, {})
    assert not list(folder.glob("1*"))
    held.release()
    assert LockFile(path).read() == other


def test_of_several_processes_only_the_first_holds_the_lock(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lock_workdir(path.parent):
        assert path.exists()
        monkeypatch.setattr(hosts, "leader", lambda: False)
        with lock_workdir(path.parent) as others:
            assert others is None
    assert not path.exists()
