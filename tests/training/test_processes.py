"""Several processes: refusals, and (slow) equal results, resumes and exact evaluation."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import pytest

from flaxres import Config, InputError, OptimConfig
from flaxres.training import hosts
from flaxres.training.provenance import Provenance, shared_facts
from tests.ops.native_cases import needs_compiler
from tools.processes import DIGITS, QUICK, ROOT, finish, rows, start


def figures(what: str, processes: str = "2") -> dict[str, float]:
    program = [sys.executable, "-m", "tools.processes"]
    done = subprocess.run(
        [*program, what, "--processes", processes, "--quick", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("127.0.0.1:1", 2, None), "go together"),
        (("127.0.0.1", 2, 0), "HOST:PORT"),
        (("127.0.0.1:1", 2, 2), "0 <= process < 2"),
    ],
)
def test_flags_that_do_not_fit_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        hosts.join(*arguments)


def test_fault_23_what_differs_between_processes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    origin = Provenance(
        flaxres="1",
        code="a",
        python="3",
        packages={"jax": "1"},
        command=[],
        devices="1 x cpu",
        processes=2,
        convolutions="XLA",
        data="d",
        evaluation="e",
        classes="c",
    )
    ours = shared_facts(Config(), origin)
    changed = dataclasses.replace(origin, packages={"jax": "2"})
    theirs = shared_facts(Config(optim=OptimConfig(learning_rate=0.2)), changed)
    monkeypatch.setattr(hosts, "gather", lambda value: [value, theirs])
    rate = "optim.learning_rate: '0.1' in process 0, '0.2' in process 1"
    with pytest.raises(InputError, match=f"{rate}; jax: '1' in process 0, '2' in process 1"):
        hosts.require_same(ours)


@pytest.mark.parametrize("leads", [True, False])
def test_processes_take_turns_and_a_result_may_be_none(
    leads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts, "leader", lambda: leads)
    monkeypatch.setattr(hosts, "wait_for_all", lambda what: events.append("wait"))
    monkeypatch.setattr(hosts, "gather", lambda value: [value, ""])
    assert hosts.leader_first(lambda: events.append("call")) is None
    assert events == (["call", "wait"] if leads else ["wait", "call"])


def test_one_process_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in hosts.CLUSTERS:
        monkeypatch.delenv(name, raising=False)
    hosts.join()
    hosts.join("127.0.0.1:1", 1, 0)
    assert hosts.gather({"a": 1}) == [{"a": 1}]
    assert hosts.leader()


@pytest.mark.slow
def test_several_processes_give_the_losses_of_one() -> None:
    for name, difference in figures("losses").items():
        assert difference < (1e-5 if name.startswith("float32") else 1e-8), name


@pytest.mark.slow
def test_fault_14_fault_15_a_run_goes_on_with_other_numbers_of_processes_and_devices() -> None:
    found = figures("resume")
    assert found["processes_1_2_1"] < 1e-8
    assert found["devices_1_4_2"] < 1e-8


@pytest.mark.slow
def test_fault_24_evaluation_is_exact_on_any_number_of_processes() -> None:
    assert figures("evaluation", "4") == {"evaluations": 70, "wrong": 0}


@pytest.mark.slow
@pytest.mark.parametrize("flag", [("--train.seed", "7"), ("--optim.learning-rate", "0.3")])
def test_fault_23_a_process_with_another_command_is_refused_before_step_1(
    tmp_path: pathlib.Path, flag: tuple[str, str]
) -> None:
    command = [
        "train.py",
        *DIGITS,
        *QUICK,
        "--data.data-dir",
        str(tmp_path / "data"),
        "--workdir",
        str(tmp_path / "run"),
    ]
    started = start(command, 2)
    started[1].kill()
    started[1].communicate()
    port = started[0].args[started[0].args.index("--coordinator") + 1]  # type: ignore[union-attr, index, arg-type]
    started[1] = subprocess.Popen(
        [
            sys.executable,
            *command,
            *flag,
            "--coordinator",
            str(port),
            "--processes",
            "2",
            "--process",
            "1",
        ],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    field = flag[0][2:].replace("-", "_")
    for text in finish(started, 2):
        assert f"{field}: " in text
    assert not rows(tmp_path / "run")


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("without", ["", "1"])
def test_processes_agree_on_native_code_and_gloo_is_patient(without: str) -> None:
    """None uses native code if one has none. Gloo's thread displaces no other."""
    program = """
import os, sys
without, *words = sys.argv[1:]
if words[-1] == without:
    os.environ["FLAXRES_NATIVE_CONVOLUTIONS"] = "0"
from flaxres.cli._process import joined
assert not joined(words)
from flaxres.ops import native
policies = [os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")]
print(bool(native.compiler()), policies.count(os.SCHED_BATCH), flush=True)
from flaxres.training.hosts import wait_for_all
wait_for_all("end")
"""
    for said in finish(start(["-c", program, without], 2)):
        assert said.splitlines()[-1] == f"{not without} 1", said


@pytest.mark.slow
def test_fault_20_a_process_that_dies_takes_the_others_down(tmp_path: pathlib.Path) -> None:
    import time

    command = [
        "train.py",
        *DIGITS,
        *QUICK,
        "--data.data-dir",
        str(tmp_path / "data"),
        "--workdir",
        str(tmp_path / "run"),
        "--train.epochs",
        "4000",
    ]
    for victim in (1, 0):
        started = start(command, 2)
        while max(rows(tmp_path / "run"), default=0) < 5:
            assert all(process.poll() is None for process in started)
            time.sleep(0.1)
        started[victim].kill()
        begun = time.monotonic()
        started[1 - victim].communicate(timeout=60)
        assert started[1 - victim].returncode != 0
        assert time.monotonic() - begun < 30
        started[victim].communicate()
        (tmp_path / "run" / "metrics.jsonl").unlink()
