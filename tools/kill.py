"""Sends SIGKILL at random times and repeats the command: `python -m tools.kill --kills 5 [--points] [--processes 2] --json`.

D is the SHA-256 over every leaf of the final state (parameters, batch statistics, optimizer state, step). Prints the kills, how many runs ended
with another D or another log than the run that was never killed (`mismatches`), how many could not go on (`losses`), and the seconds that a
kill cost. With several processes one of them is killed, in turn, and `seconds_to_end` is the longest that the others lived on.
"""

import argparse
import hashlib
import json
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

from flaxres.config.files import from_json
from flaxres.data.prepare import prepare
from flaxres.training.checkpoints import Checkpoints
from flaxres.training.metrics import read_metrics
from flaxres.training.run import prepare_run
from tools import processes
from tools.killed import LEADING, MOST, POINTS, RESUMING

TIMES = ("images_per_second", "input_stall_percent")
Started = list[subprocess.Popen[str]]
Hit = tuple[str, str, int]  # signal, point and how often it is passed until then


def arguments(workdir: pathlib.Path, data_dir: pathlib.Path, *more: str) -> list[str]:
    """A run of 40 steps on the digits, through the host's loader: an epoch is 10 steps, and each ends in an evaluation and a checkpoint."""
    options = "--train.steps 40 --train.batch-size 128 --train.eval-every-epochs 1 --train.checkpoint-every-epochs 1 --train.log-every-steps 1"
    loader = "--data.resident False --train.tensorboard False --optim.warmup-epochs 1"
    return [
        "--workdir",
        str(workdir),
        "--data.data-dir",
        str(data_dir),
        *options.split(),
        *loader.split(),
        *more,
    ]


def start(
    words: list[str],
    count: int = 1,
    hits: tuple[Hit, ...] = (),
    victim: int = 0,
    **environment: str,
) -> Started:
    """`train.py` with these arguments on `count` processes, of which the victim sends itself the signals of `hits`."""
    if not hits:
        return processes.start(["train.py", *words], count, **environment)
    program = [
        "-m",
        "tools.killed",
        *(",".join(map(str, column)) for column in zip(*hits, strict=True)),
    ]
    return processes.start([*program, *words], count, FLAXRES_VICTIM=str(victim), **environment)


def ended(started: Started, seconds: float = 600) -> list[str]:
    """What each has printed, once all have ended."""
    return [process.communicate(timeout=seconds)[0] for process in started]


def wait_for_step(workdir: pathlib.Path, step: int, started: Started) -> None:
    """Until the run has logged `step`, or one of its processes has ended."""
    while all(process.poll() is None for process in started) and not any(
        row["step"] >= step for row in read_metrics(workdir)
    ):
        time.sleep(0.02)


def digest(workdir: pathlib.Path) -> str:
    """D of the newest checkpoint."""
    run = prepare_run(from_json(workdir / "config.json"))
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        state = checkpoints.restore(run.abstract_state())
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.asarray(leaf)
        sha.update(
            f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode() + array.tobytes()
        )
    return sha.hexdigest()


def log(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    return [
        {key: value for key, value in row.items() if not key.endswith(TIMES)}
        for row in read_metrics(workdir)
    ]


def interrupted(
    words: list[str], rng: random.Random, whole: float, points: list[str], count: int, victim: int
) -> tuple[bool, float]:
    """One kill: at a point where one is given, in the middle of an epoch for "mid-epoch", else at a random time. Whether it came before the end,
    and the seconds that the other processes lived on.
    """
    workdir = pathlib.Path(words[1])
    saved = any((workdir / "checkpoints").glob("[0-9]*"))
    fitting = [i for i, point in enumerate(points) if saved or point not in RESUMING]
    point = points.pop(fitting[-1]) if fitting else "random"
    victim = 0 if point in LEADING else victim
    hits: tuple[Hit, ...] = (
        (("KILL", point, rng.randint(1, MOST.get(point, 1))),) if point in POINTS else ()
    )
    started = start(words, count, hits, victim)
    if point == "mid-epoch":
        wait_for_step(workdir, 15, started)
    elif not hits:
        time.sleep(rng.uniform(0, whole))
    if not hits:
        started[victim].kill()
    started[victim].wait()
    begun = time.monotonic()
    texts = ended(started)
    seconds = time.monotonic() - begun
    code = started[victim].returncode
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"exit code {code} on the way to {point}: {texts[victim][-2000:]}")
    if code and any(process.returncode == 0 for process in started):
        raise RuntimeError(
            f"a process was killed at {point}, and another says that the run is finished: {[p.returncode for p in started]}"
        )
    return code != 0, seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument(
        "--kills-per-run",
        type=int,
        default=1,
        help="the same run is killed so often before it may finish",
    )
    parser.add_argument(
        "--points",
        action="store_true",
        help="kill at the points of tools/killed.py too, in turn with random times",
    )
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    rng, kills, runs, mismatches, losses, lost, longest = (
        random.Random(chosen.seed),
        0,
        0,
        0,
        0,
        0.0,
        0.0,
    )
    points = (
        []
        if not chosen.points
        else rng.sample(
            [*POINTS, *["random"] * (len(POINTS) // 2)] * (chosen.kills // 20 + 1), chosen.kills
        )
    )
    points.append(
        "mid-epoch"
    )  # taken from the end: the first kill is always in the middle of an epoch
    with tempfile.TemporaryDirectory() as folder:
        base, data_dir = pathlib.Path(folder), pathlib.Path(folder) / "data"
        prepare("digits", None, str(data_dir))
        begun = time.perf_counter()
        processes.finish(start(arguments(base / "reference", data_dir), chosen.processes))
        whole = time.perf_counter() - begun
        expected, lines = digest(base / "reference"), log(base / "reference")
        while kills < chosen.kills:
            workdir, begun, runs = base / f"killed{runs}", time.perf_counter(), runs + 1
            words = arguments(workdir, data_dir)
            try:
                for _ in range(min(chosen.kills_per_run, chosen.kills - kills)):
                    came, seconds = interrupted(
                        words, rng, whole, points, chosen.processes, kills % chosen.processes
                    )
                    if not came:
                        break  # it came to its end first
                    kills, longest = kills + 1, max(longest, seconds)
                processes.finish(start(words, chosen.processes))
            except RuntimeError as error:
                losses += 1
                print(error, file=sys.stderr)
                continue
            lost += time.perf_counter() - begun - whole
            mismatches += digest(workdir) != expected or log(workdir) != lines
            if not chosen.json:
                print(
                    f"{kills} kills in {runs} runs: {mismatches} mismatches, {losses} losses",
                    flush=True,
                )
    figures = {
        "kills": kills,
        "runs": runs,
        "mismatches": mismatches,
        "losses": losses,
        "seconds_lost_per_kill": lost / max(kills, 1),
    }
    figures |= {"seconds_to_end": longest} if chosen.processes > 1 else {}
    print(
        json.dumps(figures)
        if chosen.json
        else "\n".join(f"{name}: {value}" for name, value in figures.items())
    )


if __name__ == "__main__":
    main()
