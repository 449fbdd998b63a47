"""Worker processes: the same batches, and errors instead of endless waits."""

import multiprocessing
import os
import pathlib
import signal
import time

import numpy as np
import pytest

from flaxres import _command
from flaxres.data import _workers
from flaxres.data._workers import default_workers
from flaxres.data.loader import Loader, Speed
from flaxres.data.source import Source
from flaxres.errors import InputError
from flaxres.training.mesh import data_mesh, split
from tests.data.loading import load, training


@pytest.mark.slow
def test_worker_processes_change_nothing_and_end(digits: Source) -> None:
    expected = load(digits, training(1297, 16, 0, 0, 5))
    with Loader(digits, training(1297, 16, 0, 0, 5), split(data_mesh(2)), Speed(1, 2)) as loader:
        batches, names = [], set()
        for batch in loader:
            names |= {block.name for block in loader.shared.blocks}
            batches.append({name: np.asarray(array) for name, array in batch.items()})
    for ours, batch in zip(batches, expected, strict=True):
        for name, array in batch.items():
            np.testing.assert_array_equal(ours[name], array)
    assert names
    assert not any(pathlib.Path("/dev/shm", name.lstrip("/")).exists() for name in names)
    deadline = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_fault_17_a_worker_that_is_killed_is_an_error_and_not_a_wait(digits: Source) -> None:
    with Loader(
        digits, training(1297, 16, 0, 0, 100_000), split(data_mesh(1)), Speed(1, 2)
    ) as loader:
        batches = iter(loader)
        next(batches)
        begun, names = time.monotonic(), [block.name for block in loader.shared.blocks]
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="a loading process .* died"):
            for _ in batches:
                pass
        assert time.monotonic() - begun < 20
    assert names
    assert not any(pathlib.Path("/dev/shm", name.lstrip("/")).exists() for name in names)


@pytest.mark.slow
def test_fault_18_a_worker_that_is_stopped_is_named(digits: Source) -> None:
    with Loader(
        digits,
        training(1297, 16, 0, 0, 100_000),
        split(data_mesh(1)),
        Speed(1, 1, worker_seconds=5),
    ) as loader:
        batches = iter(loader)
        next(batches)
        (worker,) = multiprocessing.active_children()
        begun = time.monotonic()
        os.kill(worker.pid or 0, signal.SIGSTOP)
        with pytest.raises(
            RuntimeError,
            match=f"finished no batch for 5 seconds .*: process {worker.pid} is stopped",
        ):
            for _ in batches:
                pass
        assert time.monotonic() - begun < 20


def test_fault_19_a_full_dev_shm_is_named(digits: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = training(1297, 16, 0, 0, 10)

    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with (
        Loader(digits, rows, split(data_mesh(1)), Speed(1, 1)) as loader,
        pytest.raises(InputError, match=r"/dev/shm has no room .*data\.workers=0"),
    ):
        next(iter(loader))
    assert not loader.shared.blocks


def test_on_many_cores_a_command_decodes_in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_command, "running", True)
    monkeypatch.setattr(_workers, "_available_memory", lambda: 64 << 30)
    cores = set(range(16))
    monkeypatch.setattr("os.sched_getaffinity", lambda process: cores)
    assert default_workers(1 << 20, 0) == (14, "")
    assert default_workers(1 << 20, 4 << 30)[0] == 3, "each with its own cache"
    none, reason = default_workers(1 << 60, 0)
    assert none == 0
    assert "/dev/shm has" in reason
    assert "--shm-size" in reason
    none, reason = default_workers(1 << 20, 60 << 30)
    assert none == 0
    assert "lower data.cache_mib" in reason
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(4)))
    assert default_workers(1 << 20, 0) == (0, "")
    # A script of somebody's own may not survive being imported by a process that it starts.
    monkeypatch.setattr("os.sched_getaffinity", lambda process: cores)
    monkeypatch.setattr(_command, "running", False)
    none, reason = default_workers(1 << 20, 0)
    assert none == 0
    assert "data.workers=14 is faster" in reason
