"""Trains recipes of CIFAR-10 within a time, for machines that are lent for minutes.

    python -m benchmarks.recipes FOLDER --out OUT --runs quick repeated resnet20
    python -m benchmarks.recipes FOLDER --out OUT --runs torch_resnet20 --config OUT/resnet20

FOLDER has `train/CLASS/*` and `test/CLASS/*`. The runs are, one after another:

  quick           the recipe cifar10/quick
  repeated        3,000 steps of ResNet-20 with `train.deterministic`: once in one go, and once
                  killed after its first checkpoint and resumed; counts the arrays that differ
  resnet20        the paper's recipe of ResNet-20 in float32, 64,000 steps
  plain20         the same without shortcuts
  torch_resnet20  the same in PyTorch, from the config.json of the folder `--config`, by default
                  of this call's resnet20; see `benchmarks.torch_recipe`

Each prints its seconds, top-1 and the median of its images/s. It leaves its workdir with the newest
checkpoint in OUT/NAME.tar.gz, for `tools.results write`, and its config in OUT/NAME. At the end of
the time the current run gets SIGTERM, and saves; those that follow are named.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from typing import Any

from benchmarks import command
from flaxres.training.metrics import read_metrics
from flaxres.training.verification import step_number, steps
from flaxres.training.workdir import CHECKPOINTS, CONFIG, SUMMARY
from flaxres.weights.files import read

RUNS = ("quick", "repeated", "resnet20", "plain20", "torch_resnet20")
FLOAT32 = ("--model.dtype", "float32")
# Seconds in which a run that is stopped saves.
SAVING = 30


class Lease:
    """The machine for some minutes: its data, its time, and the folder for results."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.end = time.monotonic() + 60 * chosen.minutes
        self.out, self.steps = pathlib.Path(chosen.out), chosen.steps
        self.device = chosen.device
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="recipes-"))
        self.data = [
            *("--data.name", "folder", "--data.source", chosen.folder, "--data.copy", "False"),
            *("--data.eval-split", "test"),
        ]

    def left(self) -> float:
        """Returns the seconds that are left, without those for the last save."""
        left: float = self.end - time.monotonic() - SAVING
        return left

    def train(self, name: str, config: str, *words: str) -> subprocess.Popen[bytes]:
        """Starts to train a recipe."""
        steps = ("--train.steps", str(self.steps)) if self.steps else ()
        options = [*self.data, "--workdir", str(self.work / name), *words, *steps]
        return self.start(name, "train.py", "--config", config, *options)

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """Starts a program of ours; its output goes to OUT/NAME.log."""
        with open(self.out / f"{name}.log", "ab") as log:  # noqa: PTH123
            return subprocess.Popen([sys.executable, *words], stdout=log, stderr=subprocess.STDOUT)

    def wait(self, process: subprocess.Popen[bytes]) -> None:
        """Waits for a run; at the end of the time it is asked to save and end.

        Raises:
          RuntimeError: it did not finish.
        """
        try:
            process.wait(max(self.left(), 0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(SAVING)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.returncode:
            raise RuntimeError(f"ended with code {process.returncode}: see its log")

    def keep(self, name: str) -> None:
        """Packs a workdir with its newest checkpoint only."""
        folder = self.work / name
        if not (numbers := steps(folder / CHECKPOINTS)):
            return
        (self.out / name).mkdir(exist_ok=True)
        shutil.copy(folder / CONFIG, self.out / name)

        def wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
            parts = pathlib.PurePath(entry.name).parts
            old = len(parts) > 2 and parts[1] == CHECKPOINTS and step_number(parts[2]) != numbers[0]
            return None if old else entry

        with tarfile.open(self.out / f"{name}.tar.gz", "w:gz") as archive:
            archive.add(folder, name, filter=wanted)

    def figures(self, name: str) -> dict[str, float]:
        """Returns the accuracy and the rate of a run that is finished."""
        summary = json.loads((self.work / name / SUMMARY).read_text())
        rows = read_metrics(self.work / name)
        rates = [row["train/images_per_second"] for row in rows if "train/images_per_second" in row]
        return {"top1": summary["top1"], "images_per_second": statistics.median(rates)}


def repeated(lease: Lease) -> dict[str, float]:
    """Trains twice, once killed and resumed, and compares the weights."""
    words = ["--train.deterministic", "True", "--train.checkpoint-every-epochs", "2"]
    if not lease.steps:
        words += ["--train.steps", "3000"]
    for name in ("whole", "killed"):
        process = lease.train(name, "cifar10/resnet20", *words)
        if name == "killed":
            saved = lease.work / name / CHECKPOINTS
            while process.poll() is None and not steps(saved):
                time.sleep(0.05)
            process.kill()
            process.wait()
            process = lease.train(name, "cifar10/resnet20", *words)
        lease.wait(process)
    arrays = []
    for name in ("whole", "killed"):
        file = lease.work / f"{name}.safetensors"
        convert = ("-m", "flaxres.cli", "convert", str(lease.work / name), str(file))
        lease.wait(lease.start(name, *convert))
        arrays.append(read(file)[0])
    first, second = arrays
    differ = sum(first[key].tobytes() != second[key].tobytes() for key in first)
    return lease.figures("whole") | {"arrays": len(first), "arrays_that_differ": differ}


def run(name: str, lease: Lease, config: pathlib.Path | None) -> dict[str, Any]:
    """Trains one of `RUNS`, and returns its figures."""
    if name == "repeated":
        return repeated(lease)
    if name == "torch_resnet20":
        file = lease.out / f"{name}.json"
        words = ["-m", "benchmarks.torch_recipe", str(config or lease.work / "resnet20")]
        lease.wait(
            lease.start(name, *words, "--device", lease.device, "--json", "--out", str(file))
        )
        result: dict[str, Any] = json.loads(file.read_text())
        return {"top1": result["mean"]}
    options = {
        "quick": ("cifar10/quick",),
        "resnet20": ("cifar10/resnet20", *FLOAT32),
        "plain20": ("cifar10/resnet20", *FLOAT32, "--model.shortcut", "none"),
    }
    try:
        lease.wait(lease.train(name, *options[name]))
    finally:
        lease.keep(name)
    return lease.figures(name)


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("folder", help="of CIFAR-10 as images")
    parser.add_argument("--out", default=os.environ.get("OUT", "."), help="folder for results")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS, metavar="NAME")
    parser.add_argument("--config", type=pathlib.Path, help="folder with config.json, for PyTorch")
    parser.add_argument("--device", default="cuda", help="PyTorch's name of the device")
    parser.add_argument("--steps", type=int, help="so many steps, to check that the program works")
    chosen = parser.parse_args()
    lease, figures = Lease(chosen), dict[str, Any]()
    for name in chosen.runs:
        if lease.left() < 0:
            print(f"no time is left for {name}", file=sys.stderr)
            continue
        start = time.monotonic()
        try:
            figures[name] = run(name, lease, chosen.config)
        except Exception as error:  # the other runs are worth having
            figures[name] = {"error": f"{type(error).__name__}: {error}"}
        figures[name]["seconds"] = round(time.monotonic() - start, 1)
        (lease.out / "recipes.json").write_text(json.dumps(figures, indent=1) + "\n")
        if not chosen.json:
            print(f"{name}: {figures[name]}", flush=True)
    if chosen.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
