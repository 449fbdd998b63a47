"""Worker processes: the same batches, and errors instead of endless waits."""

import multiprocessing
import os
import pathlib
import signal
import sys
import time
import types
from typing import Any

import numpy as np
import pytest

from flaxres.data import _cores
from flaxres.data._cores import default_workers
from flaxres.data._workers import start_workers
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


def test_on_many_cores_processes_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cores, "available_memory", lambda: 64 << 30)
    monkeypatch.setattr(_cores, "free_shared_memory", lambda: 1 << 30)
    monkeypatch.setattr(_cores, "main_module_is_guarded", lambda: True)

    def chosen(cores: int = 16, shared: int = 1 << 20, cache: int = 0, **more: int) -> Any:
        monkeypatch.setattr(_cores, "usable_cores", lambda: cores)
        return default_workers(more.get("images", 10**6), shared, cache, more.get("processes", 1))

    assert chosen() == (14, "")
    assert chosen(cores=256) == (32, "")
    assert chosen(cores=4) == (0, "")
    assert chosen(images=5000) == (5, "")
    assert chosen(images=1500) == (0, ""), "threads start at once"
    assert chosen(cache=4 << 30) == (3, ""), "each with its own cache"
    for none, reason, words in (
        (*chosen(shared=2 << 30), "/dev/shm has 1,024 MiB free, and they would take 2,048"),
        (*chosen(cache=60 << 30), "holds fewer than two"),
        (*chosen(processes=8), "set data.workers, for each of the 8 processes"),
    ):
        assert none == 0
        assert words in reason
    monkeypatch.setattr(_cores, "main_module_is_guarded", lambda: False)
    assert "under `if __name__" in chosen()[1]


def test_a_main_module_without_a_guard_is_seen(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "script.py"
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert _cores.main_module_is_guarded(), "a notebook has no file"
    main.__file__ = str(script)
    assert not _cores.main_module_is_guarded()
    script.write_text("import flaxres\n\nflaxres.fit(None, 'runs')\n")
    assert not _cores.main_module_is_guarded()
    script.write_text("if __name__ == '__main__':\n    flaxres.fit(None, 'runs')\n")
    assert _cores.main_module_is_guarded()
    main.__file__ = str(pathlib.Path(__file__).parents[2] / "train.py")
    assert _cores.main_module_is_guarded()


def test_a_containers_limits_count(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cores, "CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(128)))
    assert _cores.usable_cores() == 128
    free = _cores.available_memory()
    assert free > 0
    for quota, cores in (("max 100000", 128), ("800000 100000", 8)):
        (tmp_path / "cpu.max").write_text(quota + "\n")
        assert _cores.usable_cores() == cores
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("3000\n")
    assert _cores.available_memory() > 3000
    (tmp_path / "memory.max").write_text("4000\n")
    assert _cores.available_memory() == 1000


def test_a_signal_while_workers_start_does_not_end_them(digits: Source) -> None:
    pool, workers = start_workers(2, digits)
    for process in workers:
        os.kill(process.pid or 0, signal.SIGTERM)
        os.kill(process.pid or 0, signal.SIGINT)
    assert pool.submit(abs, -1).result(60) == 1
    pool.shutdown()
