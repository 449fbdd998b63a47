"""Sends SIGKILL to training runs at random times, and resumes them.

    python -m tools.kill --kills 5 [--points] [--outputs] [--processes 2] [--store s3] --json

The final digest is the SHA-256 over every leaf of the final state (parameters, batch statistics,
optimizer state, step). The program prints:

  kills                   number of kills
  runs                    number of runs
  mismatches              runs with another final digest or another log than a run without kills
  losses                  runs that could not be resumed
  seconds_lost_per_kill   time that a kill cost
  seconds_to_end          longest time that the other processes ran after the kill of one

With several processes one of them is killed, in turn. With --store the workdirs and the data, as
Parquet, are in an object store (see tools/stores.py). Before every second resume the folder that
the run worked in is deleted, as if it went on on another machine.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import command
from benchmarks.forms import write_parquet
from flaxres.cache import cache_folder
from flaxres.config.files import from_json
from flaxres.data.datasets import open_or_prepare
from flaxres.data.prepare import prepare
from flaxres.remote import RemoteFolder, is_address
from flaxres.training.checkpoints import Checkpoints
from flaxres.training.metrics import read_metrics
from flaxres.training.run import prepare_run
from flaxres.training.staging import local, staging_folder, steps_of
from flaxres.training.verification import steps
from tools import processes
from tools.killed import LEADING, MOST, POINTS, RESUMING, STORING
from tools.stores import KINDS, served

TIMES = ("images_per_second", "input_stall_percent")
OUTPUTS = ("kept", "tee", "tee dies", "closed")
Started = list[subprocess.Popen[str]]
Hit = tuple[str, str, int]  # signal, point, and the number of the call that it comes at


def arguments(
    workdir: pathlib.Path | str, data_dir: pathlib.Path, *more: str, parquet: str | None = None
) -> list[str]:
    """Returns the options of a run of 40 steps on the digits, through the host's loader.

    An epoch is 10 steps, and each ends in an evaluation and a checkpoint.

    Args:
      workdir: the workdir, a folder or an address.
      data_dir: folder of prepared datasets.
      *more: more options.
      parquet: folder or address of the digits as Parquet, which are read in place of the prepared.
    """
    if parquet is not None:
        more = ("--data.name", "parquet", "--data.source", parquet, *more)
    steps = "--train.steps 40 --train.batch-size 128 --train.log-every-steps 1"
    epochs = "--train.eval-every-epochs 1 --train.checkpoint-every-epochs 1"
    loader = "--data.resident False --train.tensorboard False --optim.warmup-epochs 1"
    folders = ["--workdir", str(workdir), "--data.data-dir", str(data_dir)]
    return [*folders, *steps.split(), *epochs.split(), *loader.split(), *more]


def start(
    words: list[str],
    count: int = 1,
    hits: tuple[Hit, ...] = (),
    victim: int = 0,
    **environment: str,
) -> Started:
    """Starts `train.py` on `count` processes; the victim sends itself the signals of `hits`."""
    if not hits:
        return processes.start(["train.py", *words], count, 1, False, **environment)
    columns = [",".join(map(str, column)) for column in zip(*hits, strict=True)]
    program = ["-m", "tools.killed", *columns, *words]
    environment["FLAXRES_VICTIM"] = str(victim)
    return processes.start(program, count, 1, False, **environment)


def lead_output(process: subprocess.Popen[str], output: str, seconds: float) -> None:
    """Leads the output of a process elsewhere than to this one.

    Args:
      process: the process.
      output: "tee", as in a shell's `| tee FILE`; "tee dies", whose tee is killed, as Ctrl-C does;
        "closed", a pipe whose other end is closed; or "kept".
      seconds: time until tee dies, or the pipe is closed.
    """
    if output == "kept":
        return
    pipe, process.stdout = process.stdout, None  # so that communicate() does not read it
    assert pipe is not None
    end = pipe.close
    if output != "closed":
        tee = subprocess.Popen(["tee", os.devnull], stdin=pipe, stdout=subprocess.DEVNULL)
        pipe.close()
        end = tee.kill
    if output != "tee":
        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()


def ended(started: Started, seconds: float = 600) -> list[str]:
    """Waits for all processes and returns their output."""
    return [process.communicate(timeout=seconds)[0] for process in started]


def place_of(workdir: str, count: int) -> pathlib.Path:
    """Returns the folder that the first of so many processes works in."""
    if not is_address(workdir):
        return pathlib.Path(workdir)
    folder = staging_folder(workdir, "runs")
    return folder if count == 1 else folder.with_name(f"{folder.name}-process0")


def has_steps(workdir: str) -> bool:
    """Returns whether a workdir holds a checkpoint, sound or not."""
    if is_address(workdir):
        return bool(steps_of(RemoteFolder(workdir).names()))
    return bool(steps(pathlib.Path(workdir) / "checkpoints"))


def wait_for_step(workdir: pathlib.Path, step: int, started: Started) -> None:
    """Waits until the run has logged `step`, or one of its processes has ended."""
    while all(process.poll() is None for process in started) and not any(
        row["step"] >= step for row in read_metrics(workdir)
    ):
        time.sleep(0.02)


def digest(workdir: pathlib.Path) -> str:
    """Returns the digest of the newest checkpoint."""
    run = prepare_run(from_json(workdir / "config.json"))
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        state = checkpoints.restore(run.abstract_state())
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.asarray(leaf)
        head = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}"
        sha.update(head.encode() + array.tobytes())
    return sha.hexdigest()


def log(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl without the values that depend on the clock."""
    return [
        {key: value for key, value in row.items() if not key.endswith(TIMES)}
        for row in read_metrics(workdir)
    ]


def interrupted(
    words: list[str],
    rng: random.Random,
    whole: float,
    points: list[str],
    count: int,
    victim: int,
    outputs: Sequence[str] = (),
) -> tuple[bool, float]:
    """Runs once and kills: at the next point, in the middle of an epoch, or at a random time.

    Args:
      words: options of the run.
      rng: draws the time, or the number of the call.
      whole: seconds of a run without kills.
      points: the points that are left; one is removed. "mid-epoch" is the middle of an epoch.
      count: number of processes.
      victim: number of the process to kill.
      outputs: one is drawn for each process, see `lead_output`; () keeps all.

    Returns:
      True if the kill came before the end of the run, and the seconds that the other processes
      lived on.

    Raises:
      RuntimeError: the run failed, or other processes say that it is finished.
    """
    saved = has_steps(words[1])
    fitting = [i for i, point in enumerate(points) if saved or point not in RESUMING]
    point = points.pop(fitting[-1]) if fitting else "random"
    victim = 0 if point in LEADING else victim
    hits: tuple[Hit, ...] = ()
    if point in POINTS:
        hits = (("KILL", point, rng.randint(1, MOST.get(point, 1))),)
    started = start(words, count, hits, victim)
    for process in started if outputs else ():
        lead_output(process, rng.choice(outputs), rng.uniform(0, whole))
    if point == "mid-epoch":
        wait_for_step(place_of(words[1], count), 15, started)
    elif not hits:
        time.sleep(rng.uniform(0, whole))
    if not hits:
        started[victim].kill()
    started[victim].wait()
    killed = time.monotonic()
    texts = ended(started)
    seconds = time.monotonic() - killed
    code = started[victim].returncode
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(
            f"exit code {code} on the way to {point}: {(texts[victim] or '')[-2000:]}"
        )
    if code and any(process.returncode == 0 for process in started):
        raise RuntimeError(
            f"a process was killed at {point}, and another says that the run is finished: "
            f"{[process.returncode for process in started]}"
        )
    return code != 0, seconds


@dataclasses.dataclass
class Tally:
    """Counts of a session of kills, as in the module's docstring."""

    kills: int = 0
    runs: int = 0
    mismatches: int = 0
    losses: int = 0
    seconds_lost: float = 0.0
    seconds_to_end: float = 0.0

    def figures(self, count: int) -> dict[str, float]:
        """Returns what is printed after a session with so many processes."""
        figures: dict[str, float] = {
            "kills": self.kills,
            "runs": self.runs,
            "mismatches": self.mismatches,
            "losses": self.losses,
            "seconds_lost_per_kill": self.seconds_lost / max(self.kills, 1),
        }
        return figures | ({"seconds_to_end": self.seconds_to_end} if count > 1 else {})


def points_of(chosen: Any, rng: random.Random) -> list[str]:
    """Returns the points to kill at; they are taken from the end."""
    points: list[str] = []
    if chosen.points:
        stages = [point for point in POINTS if chosen.store or point not in STORING]
        pool = [*stages, *["random"] * (len(stages) // 2)] * (chosen.kills // 20 + 1)
        points = rng.sample(pool, chosen.kills)
    return [*points, "mid-epoch"]  # the first kill is always in the middle of an epoch


def write_digits(folder: pathlib.Path, data_dir: pathlib.Path) -> None:
    """Writes the prepared digits as Parquet files."""
    for source in open_or_prepare("digits", data_dir=str(data_dir)):
        rows = [(source.file_name(i), *source.read(i)) for i in range(len(source))]
        split = source.name.partition("/")[2]
        write_parquet(folder / f"{split}-00000-of-00001.parquet", rows, source.classes, group=100)


def session(chosen: Any, base: pathlib.Path, address: str | None = None) -> Tally:
    """Trains once without kills, then kills and resumes runs until there are enough kills.

    Args:
      chosen: the options.
      base: a folder for the data and the reference.
      address: the bucket of the workdirs; None is `base`.
    """
    rng, tally, count = random.Random(chosen.seed), Tally(), chosen.processes
    points = points_of(chosen, rng)
    outputs = OUTPUTS if chosen.outputs else ()
    data_dir = base / "data"
    prepare("digits", None, str(data_dir))
    begin = time.perf_counter()
    source = None
    if address is not None:
        write_digits(base / "parquet", data_dir)
        for path in (base / "parquet").iterdir():
            RemoteFolder(f"{address}/parquet").upload(path, path.name)
        source = str(base / "parquet")
    reference = arguments(base / "reference", data_dir, parquet=source)
    processes.finish(start(reference, count))
    whole = time.perf_counter() - begin
    expected, lines = digest(base / "reference"), log(base / "reference")
    while tally.kills < chosen.kills:
        workdir, begin = f"{address or base}/killed{tally.runs}", time.perf_counter()
        tally.runs += 1
        words = arguments(workdir, data_dir, parquet=source and f"{address}/parquet")
        try:
            for _ in range(min(chosen.kills_per_run, chosen.kills - tally.kills)):
                victim = tally.kills % count
                came, seconds = interrupted(words, rng, whole, points, count, victim, outputs)
                if not came:
                    break  # the run ended first
                tally.kills += 1
                tally.seconds_to_end = max(tally.seconds_to_end, seconds)
                if tally.kills % 2:
                    shutil.rmtree(cache_folder() / "runs", ignore_errors=True)
            processes.finish(start(words, count))
        except RuntimeError as error:
            tally.losses += 1
            print(error, file=sys.stderr)
            continue
        tally.seconds_lost += time.perf_counter() - begin - whole
        ours = local(workdir)
        tally.mismatches += digest(ours) != expected or log(ours) != lines
        if not chosen.json:
            print(
                f"{tally.kills} kills in {tally.runs} runs: {tally.mismatches} mismatches, "
                f"{tally.losses} losses",
                flush=True,
            )
    return tally


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument(
        "--kills-per-run",
        type=int,
        default=1,
        help="number of kills of the same run before it may finish",
    )
    parser.add_argument(
        "--points",
        action="store_true",
        help="kill at the points of tools/killed.py too, in turn with random times",
    )
    parser.add_argument(
        "--outputs",
        action="store_true",
        help="lead outputs into tee, into a tee that is killed, or close them at random times",
    )
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--store", choices=KINDS, help="have the workdirs in an object store")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        address = None
        if chosen.store:
            store = stack.enter_context(served(chosen.store))
            os.environ.update(store.environment, XDG_CACHE_HOME=f"{folder}/cache")
            address = store.address
        tally = session(chosen, pathlib.Path(folder), address)
    command.show(tally.figures(chosen.processes), chosen.json, "")


if __name__ == "__main__":
    main()
