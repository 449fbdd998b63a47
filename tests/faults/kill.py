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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    rng, mismatches, losses, lost = random.Random(chosen.seed), 0, 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        base, data_dir = pathlib.Path(folder), pathlib.Path(folder) / "data"
        prepare("digits", None, str(data_dir))
        begun = time.perf_counter()
        finish(command(base / "reference", data_dir))
        whole = time.perf_counter() - begun
        expected, lines = digest(base / "reference", data_dir), log(base / "reference")
        for kill in range(chosen.kills):
            workdir, begun = base / f"killed{kill}", time.perf_counter()
            process = start(command(workdir, data_dir))
            if kill == 0:  # in the middle of an epoch, always
                wait_for_step(workdir, 15, process)
            else:
                time.sleep(rng.uniform(0, whole))
            process.kill()
            process.communicate()
            try:
                finish(command(workdir, data_dir))
            except RuntimeError as error:
                losses += 1
                print(error, file=sys.stderr)
                continue
            lost += time.perf_counter() - begun - whole
            mismatches += digest(workdir, data_dir) != expected or log(workdir) != lines
            if not chosen.json:
                print(f"kill {kill + 1}: {mismatches} mismatches, {losses} losses")
    if chosen.json:
        print(json.dumps({"kills": chosen.kills, "mismatches": mismatches, "losses": losses, "seconds_lost_per_kill": lost / max(chosen.kills, 1)}))


if __name__ == "__main__":
    main()
