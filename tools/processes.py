"""Runs one training on several real processes, joined on loopback.

    python -m tools.processes {losses,resume,evaluation} [--processes 2,4] [--json]

losses      trains ResNet-20 on the digits by train.py, on one process and on several, in float64
            for 20 steps and in float32 for one, and prints the largest relative difference between
            their losses. With --quick, float32 is trained without groups of batch norm alone.
resume      trains on one process, stops it by SIGTERM, resumes on two, of which only one is told to
            stop, and ends on one; then does the same with 1, 4 and 2 devices. It prints the largest
            relative difference between the losses of all steps and those of an uninterrupted run.
evaluation  evaluates the first 1 to 70 digits on 1, 2, 3 and 4 processes, and prints how often the
            count or a sum was not that of one process.
"""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import command as arguments
from benchmarks.scaling import loopback

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = (
    *("--config", "configs/digits.py", "--train.progress", "False"),
    *("--train.tensorboard", "False", "--train.log-every-steps", "1"),
)
QUICK = ("--model.depths", "1", "1", "1")
EVALUATED, EVAL_BATCH = range(1, 71), 24


def environment(devices: int = 1, x64: bool = False) -> dict[str, str]:
    """Returns the variables of a process with so many CPU devices, in float64 or not."""
    counted = f"--xla_force_host_platform_device_count={devices}"
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": str(int(x64)),
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {counted}",
    }


def start(
    command: list[str], processes: int, devices: int = 1, x64: bool = False, **more: str
) -> list[subprocess.Popen[str]]:
    """Starts the processes of one run.

    Args:
      command: arguments of Python.
      processes: number of processes.
      devices: number of devices of each process.
      x64: enable float64.
      **more: variables of their environment.
    """
    coordinator = loopback()
    joined = [
        []
        if processes == 1
        else ["--coordinator", coordinator, "--processes", str(processes), "--process", str(i)]
        for i in range(processes)
    ]
    options: dict[str, Any] = {
        "cwd": ROOT,
        "env": os.environ | more | environment(devices, x64),
        "text": True,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
    }
    return [subprocess.Popen([sys.executable, *command, *flags], **options) for flags in joined]


def finish(started: list[subprocess.Popen[str]], code: int = 0) -> list[str]:
    """Waits for all processes and returns their output.

    Raises:
      RuntimeError: a process did not exit with `code`.
    """
    texts = [process.communicate(timeout=900)[0] for process in started]
    for process, text in zip(started, texts, strict=True):
        if process.returncode != code:
            raise RuntimeError(f"exit code {process.returncode} in place of {code}:\n{text}")
    return texts


def training(
    workdir: pathlib.Path,
    precision: str,
    steps: int,
    group: int | None = None,
    quick: bool = False,
) -> list[str]:
    """Returns the command of a training run on the digits."""
    settings = {
        "data.data-dir": workdir.parent / "data",
        "model.dtype": precision,
        "model.param-dtype": precision,
        "model.bn-group": group,
        "train.steps": steps,
        "workdir": workdir,
    }
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return ["train.py", *DIGITS, *(QUICK if quick else ()), *options]


def rows(workdir: pathlib.Path) -> dict[int, dict[str, float]]:
    """Returns the lines of the log that have a loss, by step."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {row["step"]: row for row in map(json.loads, lines) if "train/loss" in row}


def difference(ours: pathlib.Path, theirs: pathlib.Path, steps: int) -> float:
    """Returns the largest relative difference between the losses of two runs."""
    a, b = rows(ours), rows(theirs)
    assert set(a) == set(b) == set(range(1, steps + 1)), (sorted(a), sorted(b))
    return max(abs(a[step]["train/loss"] / b[step]["train/loss"] - 1) for step in b)


def losses(folder: pathlib.Path, processes: list[int], quick: bool) -> dict[str, float]:
    """Compares losses of several processes to those of one."""
    figures = {}
    for precision, steps in (("float32", 1), ("float64", 20)):
        for group in ((None,) if steps == 1 else (16,)) if quick else (None, 16):
            alone = folder / f"{precision}-{group}-1"
            for count in (1, *processes):
                workdir = folder / f"{precision}-{group}-{count}"
                command = training(workdir, precision, steps, group, quick)
                finish(start(command, count, x64=precision == "float64"))
                if count > 1:
                    name = f"{precision}_{steps}_steps_group_{group}_{count}_processes"
                    figures[name] = difference(workdir, alone, steps)
    return figures


def stop_at(started: list[subprocess.Popen[str]], workdir: pathlib.Path, step: int) -> None:
    """Waits until `step` is logged, and tells the last process to stop."""
    while max(rows(workdir), default=0) < step and all(
        process.poll() is None for process in started
    ):
        time.sleep(0.05)
    started[-1].send_signal(signal.SIGTERM)


def resume(folder: pathlib.Path, quick: bool) -> dict[str, float]:
    """Compares runs that are resumed on other processes or devices to an uninterrupted one."""
    figures: dict[str, float] = {}
    steps, apart = (48, 12) if quick else (200, 30)
    alone = folder / "alone"
    finish(start(training(alone, "float64", steps, quick=quick), 1, x64=True))
    for name, stages in (
        ("processes_1_2_1", [(1, 1), (2, 1), (1, 1)]),
        ("devices_1_4_2", [(1, 1), (1, 4), (1, 2)]),
    ):
        workdir, slowest = folder / name, 0.0
        for number, (processes, devices) in enumerate(stages):
            command = training(workdir, "float64", steps, quick=quick)
            started = start(command, processes, devices, x64=True)
            if number < len(stages) - 1:
                stop_at(started, workdir, apart + max(rows(workdir), default=0))
                stopped = time.monotonic()
                finish(started, 75)
                slowest = max(slowest, time.monotonic() - stopped)
            else:
                finish(started)
        figures |= {name: difference(workdir, alone, steps), f"{name}_seconds_to_stop": slowest}
    return figures


def evaluation(folder: pathlib.Path, processes: list[int]) -> dict[str, float]:
    """Compares sums of several processes to those of one."""
    reports = {}
    for count in sorted({1, *processes}):
        command = ["-m", "tools.processes", "worker", "--folder", str(folder / "data")]
        reports[count] = json.loads(finish(start(command, count))[0].splitlines()[-1])
    wrong = sum(
        ours["examples"] != examples
        or ours["top1"] != alone["top1"]
        or abs(ours["loss"] - alone["loss"]) > 1e-5 * alone["loss"]
        for several in (reports[count] for count in processes)
        for examples, ours, alone in zip(EVALUATED, several, reports[1], strict=True)
    )
    return {"evaluations": len(processes) * len(EVALUATED), "wrong": wrong}


def worker(folder: str) -> None:
    """Runs one process of an evaluation, which prints a report for each number of examples."""
    from flaxres.config.schema import Config, DataConfig, ModelConfig, TrainConfig
    from flaxres.data.datasets import open_or_prepare
    from flaxres.training import hosts
    from flaxres.training.evaluation import Evaluator
    from flaxres.training.run import prepare_run

    data = DataConfig(
        "digits", data_dir=folder, image_size=8, eval_size=8, eval_resize=8, crop="centre"
    )
    config = Config(
        ModelConfig("resnet20"), data, train=TrainConfig(48, eval_batch_size=EVAL_BATCH)
    )
    run = hosts.leader_first(lambda: prepare_run(config))
    evaluator, state, reports = Evaluator(run), run.first_state(), []
    for count in EVALUATED:
        evaluator.run = dataclasses.replace(
            run, evaluation=open_or_prepare("digits", [f"test[:{count}]"], None, folder)[0]
        )
        reports.append(dataclasses.asdict(evaluator(state)))
    print(json.dumps(reports))


def main() -> None:
    parser = arguments.parser(__doc__)
    parser.add_argument("what", choices=("losses", "resume", "evaluation", "worker"))
    parser.add_argument(
        "--processes", help="2,4 (losses) or 2,3,4 (evaluation); with --process: of this run"
    )
    parser.add_argument(
        "--quick", action="store_true", help="losses, resume: a network of three blocks"
    )
    parser.add_argument("--folder")
    parser.add_argument("--coordinator")
    parser.add_argument("--process", type=int)
    chosen = parser.parse_args()
    if chosen.what == "worker":
        from flaxres.training.hosts import join

        join(chosen.coordinator, chosen.processes and int(chosen.processes), chosen.process)
        worker(chosen.folder)
        return
    default = "2,4" if chosen.what == "losses" else "2,3,4"
    counts = [int(count) for count in (chosen.processes or default).split(",")]
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        figures = {
            "losses": lambda: losses(place, counts, chosen.quick),
            "resume": lambda: resume(place, chosen.quick),
            "evaluation": lambda: evaluation(place, counts),
        }[chosen.what]()
    arguments.show(figures, chosen.json, ".3g")


if __name__ == "__main__":
    main()
