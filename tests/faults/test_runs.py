"""Runs that get signals, a full disk, changed files or slow hosts.

Faults have the numbers of docs/reliability.md.
"""

import dataclasses
import json
import math
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import pytest

import flaxres
from flaxres import Config
from flaxres.config.kinds import options
from flaxres.config.settings import SETTINGS, differences, flat
from flaxres.training import metrics, pace
from flaxres.training.checkpoints import newest_sound
from flaxres.training.evaluation import Evaluator
from flaxres.training.watchdog import EXIT_STUCK
from tests.training.test_loop import digits
from tools import kill, processes

ROOT = pathlib.Path(__file__).parents[2]
ENDLESS = ("--train.steps", "100000")


def arguments(workdir: pathlib.Path, data: pathlib.Path, *more: str) -> list[str]:
    """Returns the options of a run of 40 steps, of a network that compiles in little time."""
    return kill.arguments(workdir, data, "--model.depths", *"111", *more)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def expected(
    data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, list[dict[str, Any]]]:
    """D and the log of a run that nothing happens to."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    processes.finish(kill.start(arguments(workdir, data)))
    return kill.digest(workdir), kill.log(workdir)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "count"),
    [("compile", 1), ("step", 15), ("evaluation", 1), ("saving", 1), ("digested", 1)],
)
def test_fault_02_sigterm_in_each_phase(
    point: str, count: int, data: pathlib.Path, tmp_path: pathlib.Path, expected: Any
) -> None:
    words = arguments(tmp_path / "run", data)
    (said,) = processes.finish(kill.start(words, hits=(("TERM", point, count),)), 75)
    assert said.count("is saved: start the same command again") == 1
    processes.finish(kill.start(words))
    assert (kill.digest(tmp_path / "run"), kill.log(tmp_path / "run")) == expected


@pytest.mark.slow
def test_fault_03_a_second_sigterm_during_the_save(
    data: pathlib.Path, tmp_path: pathlib.Path, expected: Any
) -> None:
    words = arguments(tmp_path / "run", data)
    # The save at step 10 is the first, the one that the signal asks for the second.
    started = kill.start(words, hits=(("TERM", "step", 15), ("TERM", "saving", 2)))
    kill.ended(started)
    assert started[0].returncode == -signal.SIGTERM
    assert newest_sound(tmp_path / "run" / "checkpoints")[0] in (10, 15)
    processes.finish(kill.start(words))
    assert (kill.digest(tmp_path / "run"), kill.log(tmp_path / "run")) == expected


@pytest.mark.slow
@pytest.mark.parametrize("named", ["checkpoints", "metrics.jsonl"])
def test_fault_04_a_full_disk(
    named: str, data: pathlib.Path, tmp_path: pathlib.Path, expected: Any
) -> None:
    words = arguments(tmp_path / "run", data)
    started = kill.start(words)
    kill.wait_for_step(tmp_path / "run", 12, started)
    while (
        newest_sound(tmp_path / "run" / "checkpoints")[0] is None
    ):  # the first save runs beside the steps
        time.sleep(0.05)
    saved = newest_sound(tmp_path / "run" / "checkpoints")[0]
    limit = (tmp_path / "run" / "metrics.jsonl").stat().st_size + 100
    if named == "checkpoints":  # less than its largest file, and more than the log will have
        files = (tmp_path / "run" / named).rglob("*")
        limit = max(path.stat().st_size for path in files if path.is_file()) // 2
        assert limit > 30_000
    begun = time.monotonic()
    resource.prlimit(started[0].pid, resource.RLIMIT_FSIZE, (limit, limit))
    (said,) = kill.ended(started)
    assert started[0].returncode == 74, said
    assert time.monotonic() - begun < 60
    last = said.splitlines()[-1]
    assert last.startswith("flaxres: ")
    assert str(tmp_path / "run" / named) in last
    assert "start the same command again" in last
    left = newest_sound(tmp_path / "run" / "checkpoints")[0]
    assert left is not None
    assert saved is not None
    assert left >= saved
    processes.finish(kill.start(words))
    assert (kill.digest(tmp_path / "run"), kill.log(tmp_path / "run")) == expected


@pytest.mark.slow
def test_fault_09_a_save_that_stalls_ends_the_run_and_says_so(
    data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    program = f"""
import time, flaxres
from tests.training.test_loop import digits
from flaxres.training.checkpoints import Checkpoints
Checkpoints.digest = lambda self: time.sleep(1000)
config = digits(
    {str(data)!r},
    tensorboard=False,
    devices=1,
    steps=100000,
    watchdog_seconds=30.0,
    eval_every_epochs=1e4,
)
flaxres.fit(config, {str(tmp_path)!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == EXIT_STUCK, done.stderr
    # Whichever the watchdog sees first: the save itself, or the next one, which waits for it.
    assert "save has not moved for 3" in done.stderr or "save of step" in done.stderr
    assert (
        "digest" in (tmp_path / "stacks.txt").read_text()
        or "lambda" in (tmp_path / "stacks.txt").read_text()
    )


def other(value: Any, kind: Any) -> Any:
    """Another value that fits a field's type."""
    if choices := [choice for choice in options(kind) if choice != value]:
        return choices[0]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, tuple):
        return (*value[:-1], value[-1] + 1) if value else (1,)
    return "x"


def test_fault_11_each_field_that_changes_is_refused_or_on_the_list() -> None:
    config, covered = Config(), 0
    for name, declared in SETTINGS.items():
        section, field = name.split(".")
        values = getattr(config, section)
        changed = dataclasses.replace(
            config,
            **{
                section: dataclasses.replace(
                    values, **{field: other(getattr(values, field), declared.kind)}
                )
            },
        )
        assert flat(changed)[name] != flat(config)[name]
        told = differences(config, changed)
        assert bool(told) != declared.facts.resume, name
        assert declared.facts.resume or name in told[0]
        covered += 1
    assert covered == len(flat(config)) > 80


@pytest.mark.slow
def test_fault_13_a_part_of_the_state_that_is_not_saved_is_noticed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.mutants", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["killed"] == figures["mutants"] == 8


@pytest.mark.slow
def test_fault_16_workers_come_and_go(
    data: pathlib.Path, tmp_path: pathlib.Path, expected: Any
) -> None:
    words = arguments(tmp_path / "run", data)
    processes.finish(kill.start([*words, "--data.workers", "2"], hits=(("TERM", "step", 15),)), 75)
    processes.finish(kill.start([*words, "--data.workers", "0"], hits=(("TERM", "step", 10),)), 75)
    processes.finish(kill.start([*words, "--data.workers", "2"]))
    assert (kill.digest(tmp_path / "run"), kill.log(tmp_path / "run")) == expected


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 0])
def test_fault_21_a_process_that_stands_still_ends_all(
    victim: int, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    words = arguments(tmp_path / "run", data, *ENDLESS)
    started = kill.start(words, 2, hits=(("STOP", "step", 12),), victim=victim)
    kill.wait_for_step(tmp_path / "run", 5, started)
    begun = time.monotonic()
    try:
        (said,) = kill.ended([started[1 - victim]], 120)
        assert time.monotonic() - begun < 60
        assert started[1 - victim].returncode != 0
        # The first process runs the service. It names the silent process, and is named if its own
        # process is silent.
        assert f"task:{victim}" in said or "coordinationservice" in said.lower().replace(" ", "")
        assert "train" in (tmp_path / "run" / f"stacks-{1 - victim}.txt").read_text()
    finally:
        for process in started:
            process.kill()
        kill.ended(started)


def test_fault_22_stragglers_are_named_and_no_others() -> None:
    even = [pace.Pace(f"host{i}", 0.02 * i, 0.010 + 0.001 * i) for i in range(8)]
    assert pace.stragglers(even) == []
    slow = [
        *even[:3],
        dataclasses.replace(even[3], probe=0.1),
        *even[4:6],
        dataclasses.replace(even[6], stall=0.9),
        even[7],
    ]
    device, data = pace.stragglers(slow)
    assert device.startswith(
        "process 3 on host3 holds the others up: "
        "a fixed product takes it 100.0 ms, the others 14.0 ms"
    )
    assert data.startswith(
        "process 6 on host6 holds the others up: "
        "it waits 90% of the time for its input, the others 6%"
    )
    assert pace.pace(0.5).stall == 0.5
    assert math.isfinite(pace.pace(0.5).probe)


@pytest.mark.slow
def test_fault_22_a_process_ten_times_slower_is_named_and_goes_on(
    data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    started = kill.start(arguments(tmp_path / "run", data, "--train.steps", "20"), 2)
    kill.wait_for_step(tmp_path / "run", 2, started)
    over = threading.Event()

    def hold_up() -> None:
        while not over.is_set() and started[1].poll() is None:
            started[1].send_signal(signal.SIGSTOP)
            time.sleep(0.09)
            started[1].send_signal(signal.SIGCONT)
            time.sleep(0.01)

    thread = threading.Thread(target=hold_up)
    thread.start()
    try:
        kill.wait_for_step(tmp_path / "run", 11, started)  # after the evaluation at 10
    finally:
        over.set()
        thread.join()
        started[1].send_signal(signal.SIGCONT)
    said = processes.finish(started)[0]
    assert "process 1 on" in said
    assert "holds the others up" in said
    assert "process 0 on" not in said


@pytest.mark.slow
def test_fault_30_a_damaged_or_forbidden_compile_cache(
    data: pathlib.Path, tmp_path: pathlib.Path, expected: Any
) -> None:
    cache = tmp_path / "cache"

    def run(name: str) -> tuple[str, list[dict[str, Any]]]:
        # flaxres chooses its own folder where JAX has none.
        environment = {"XDG_CACHE_HOME": str(cache), "JAX_COMPILATION_CACHE_DIR": ""}
        processes.finish(kill.start(arguments(tmp_path / name, data), **environment))
        return kill.digest(tmp_path / name), kill.log(tmp_path / name)

    assert run("first") == expected
    kept = [path for path in cache.rglob("*-cache") if path.is_file()]
    assert kept
    assert all((path.parent.stat().st_mode & 0o777) == 0o700 for path in kept)
    for number, path in enumerate(kept):
        content = bytearray(path.read_bytes())
        for at in range(0, len(content), max(1, len(content) // 64)):
            content[at] ^= 0x55
        path.write_bytes(content if number % 2 else content[:100])
    assert len(kept) > 1
    assert run("damaged or cut") == expected
    subprocess.run(["rm", "-r", str(cache)], check=True)
    cache.write_text("a file in its place")
    assert run("forbidden") == expected


@pytest.mark.slow
def test_fault_31_an_odd_evaluation_batch_compiles_once(
    data_dir: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    real: Callable[..., Any] = jax.stages.Lowered.compile

    def counted(self: jax.stages.Lowered, *arguments: Any, **options: Any) -> Any:
        compiled.append(threading.current_thread().name.partition("_")[0])
        return real(self, *arguments, **options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", counted)
    flaxres.fit(
        digits(
            data_dir,
            tensorboard=False,
            devices=1,
            eval_batch_size=77,
            steps=8,
            log_every_steps=1,
            eval_every_epochs=0.1,
        ),
        tmp_path / "run",
    )
    assert compiled == ["MainThread", "flaxres-evaluation"]
    assert sum("eval/top1" in row for row in metrics.read_metrics(tmp_path / "run")) == 4


def test_fault_31_an_evaluation_that_does_not_compile_ends_the_run_at_once(
    data_dir: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(self: Evaluator) -> None:
        raise MemoryError("for the evaluation")

    monkeypatch.setattr(Evaluator, "_compile", no_memory)
    config = digits(
        data_dir, tensorboard=False, devices=1, steps=600, log_every_steps=1, eval_every_epochs=99.0
    )
    with pytest.raises(MemoryError, match="for the evaluation"):
        flaxres.fit(config, tmp_path / "run")
    assert len(metrics.read_metrics(tmp_path / "run")) < 60
