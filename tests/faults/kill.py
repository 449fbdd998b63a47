"""SIGKILL at random times, then the same command again: `python -m tests.faults.kill --kills 5 --json`.

D is the SHA-256 over every leaf of the final state (parameters, batch statistics, optimizer state, step). Prints the kills, how many runs ended
with another D or another log than the run that was never killed (`mismatches`), how many could not go on (`losses`), and the seconds that a
kill cost.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np

from flaxres.data.prepare import prepare
from flaxres.training.checkpoints import Checkpoints
from flaxres.training.config import from_json
from flaxres.training.metrics import read_metrics
from flaxres.training.run import prepare_run
from tests.faults.killed import MOST, POINTS, RESUMING

ROOT = pathlib.Path(__file__).parents[2]
TIMES = ("images_per_second", "input_stall_percent")


def command(workdir: pathlib.Path, data_dir: pathlib.Path, *more: str) -> list[str]:
    """A run of 40 steps on the digits, through the host's loader: an epoch is 10 steps, and each ends in an evaluation and a checkpoint."""
    options = "--train.steps 40 --train.batch-size 128 --train.eval-every-epochs 1 --train.checkpoint-every-epochs 1 --train.log-every-steps 1"
    loader = "--data.resident False --train.tensorboard False --optim.warmup-epochs 1"
    program = [sys.executable, str(ROOT / "train.py"), "--workdir", str(workdir), "--data.data-dir", str(data_dir)]
    return [*program, *options.split(), *loader.split(), *more]


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | {"XLA_FLAGS": ""})


def finish(words: list[str]) -> None:
    process = start(words)
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {errors[-2000:]}")


def wait_for_step(workdir: pathlib.Path, step: int, process: subprocess.Popen[str]) -> None:
    """Until the run has logged `step`, or has ended."""
    while process.poll() is None and not any(row["step"] >= step for row in read_metrics(workdir)):
        time.sleep(0.02)


def digest(workdir: pathlib.Path, data_dir: pathlib.Path) -> str:
    """D of the newest checkpoint."""
    run = prepare_run(from_json(workdir / "config.json"))
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        state = checkpoints.restore(run.abstract_state())
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode() + array.tobytes())
    return sha.hexdigest()


def log(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    return [{key: value for key, value in row.items() if not key.endswith(TIMES)} for row in read_metrics(workdir)]


def killed(words: list[str], point: str, count: int) -> bool:
    """Runs a command that kills itself the `count`-th time it reaches `point`; whether it came to that."""
    program = [sys.executable, "-m", "tests.faults.killed", point, str(count), *words[2:]]
    process = subprocess.Popen(program, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | {"XLA_FLAGS": ""})
    _, errors = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"exit code {process.returncode} on the way to {point}: {errors[-2000:]}")
    return process.returncode != 0


def interrupted(words: list[str], rng: random.Random, whole: float, points: list[str]) -> bool:
    """One kill: at a point where one is given, in the middle of an epoch for "mid-epoch", else at a random time. Whether it came before the end."""
    saved = any((pathlib.Path(words[words.index("--workdir") + 1]) / "checkpoints").glob("[0-9]*"))
    fitting = [i for i, point in enumerate(points) if saved or point not in RESUMING]
    point = points.pop(fitting[-1]) if fitting else "random"
    if point in POINTS:
        return killed(words, point, rng.randint(1, MOST.get(point, 1)))
    process = start(words)
    if point == "mid-epoch":
        wait_for_step(pathlib.Path(words[words.index("--workdir") + 1]), 15, process)
    else:
        time.sleep(rng.uniform(0, whole))
    process.kill()
    process.communicate()
    return process.returncode != 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--kills-per-run", type=int, default=1, help="the same run is killed so often before it may finish")
    parser.add_argument("--points", action="store_true", help="kill at the points of tests/faults/killed.py too, in turn with random times")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    rng, kills, runs, mismatches, losses, lost = random.Random(chosen.seed), 0, 0, 0, 0, 0.0
    points = [] if not chosen.points else rng.sample([*POINTS, *["random"] * (len(POINTS) // 2)] * (chosen.kills // 20 + 1), chosen.kills)
    points.append("mid-epoch")  # taken from the end: the first kill is always in the middle of an epoch
    with tempfile.TemporaryDirectory() as folder:
        base, data_dir = pathlib.Path(folder), pathlib.Path(folder) / "data"
        prepare("digits", None, str(data_dir))
        begun = time.perf_counter()
        finish(command(base / "reference", data_dir))
        whole = time.perf_counter() - begun
        expected, lines = digest(base / "reference", data_dir), log(base / "reference")
        while kills < chosen.kills:
            workdir, begun, runs = base / f"killed{runs}", time.perf_counter(), runs + 1
            words = command(workdir, data_dir)
            try:
                for _ in range(min(chosen.kills_per_run, chosen.kills - kills)):
                    if not interrupted(words, rng, whole, points):
                        break  # it came to its end first
                    kills += 1
                finish(words)
            except RuntimeError as error:
                losses += 1
                print(error, file=sys.stderr)
                continue
            lost += time.perf_counter() - begun - whole
            mismatches += digest(workdir, data_dir) != expected or log(workdir) != lines
            if not chosen.json:
                print(f"{kills} kills in {runs} runs: {mismatches} mismatches, {losses} losses", flush=True)
    figures = {"kills": kills, "runs": runs, "mismatches": mismatches, "losses": losses, "seconds_lost_per_kill": lost / max(kills, 1)}
    print(json.dumps(figures) if chosen.json else "\n".join(f"{name}: {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
