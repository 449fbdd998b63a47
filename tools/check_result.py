"""Checks the folders of `results/`.

    python -m tools.check_result results/*
    python -m tools.check_result results/fashion_mnist_resnet9 --source DIR --accuracy
    python -m tools.check_result results/fashion_mnist_resnet9 --source DIR --again 100

Without options, it compares the digests of all files, the summary with the log, the means with the
figures of the seeds, and the digest of the weights that come with the package. `--accuracy` counts
the images of the evaluation split that these weights classify correctly. `--again N` trains the
first N steps again and compares them with the log: to the bit with the code and the packages that
`provenance.json` names, and with others to a relative difference of 1e-4.
"""

import argparse
import json
import math
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import command
from flaxres.config.files import from_json
from flaxres.data.digests import file_digest
from flaxres.errors import InputError
from flaxres.training.metrics import read_metrics
from flaxres.training.provenance import code_digest, package_versions
from flaxres.training.run import open_data
from flaxres.training.workdir import CONFIG, SUMMARY
from flaxres.weights.hub_folder import WEIGHTS
from flaxres.weights.tags import TRAINED, pretrained_info
from tools.results import PROVENANCE, RESULT, SUMS, correct, read_json

# Metrics that depend on the machine.
TIMES = ("train/images_per_second", "train/input_stall_percent")
POLL_SECONDS = 0.5
# Largest relative difference with other code or packages.
CLOSE = 1e-4


def problems(folder: pathlib.Path) -> list[str]:
    """Returns what is wrong with a result, from its files alone."""
    if not (folder / SUMS).is_file():
        return [f"no {SUMS}: give a folder of results/"]
    lines = (folder / SUMS).read_text().splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    files = {path.name for path in folder.iterdir()} - {SUMS}
    found = [f"{name} is not in {SUMS}" for name in sorted(files - sums.keys())]
    for name, digest in sums.items():
        if name not in files or file_digest(folder / name) != digest:
            found.append(f"{name} is not the file that {SUMS} names")
    return found or _contradictions(folder)


def _contradictions(folder: pathlib.Path) -> list[str]:
    """Returns figures of a result that contradict each other."""
    result, summary = (read_json(folder / name) for name in (RESULT, SUMMARY))
    last = [row for row in read_metrics(folder) if "eval/top1" in row][-1]
    pairs = {
        "the last evaluation of the log and the summary": (last["eval/top1"], summary["top1"]),
        "the step of the log and of the summary": (last["step"], summary["step"]),
        "the summary and the first seed": (summary["top1"], result["top1"][0]),
        "the seed of the config and of the result": (
            read_json(folder / CONFIG)["train"]["seed"],
            result["seeds"][0],
        ),
        "the numbers of seeds and of figures": (len(result["seeds"]), len(result["top1"])),
    }
    for peer in ("", "torch"):
        if figures := result[peer] if peer else result:
            computed = command.spread(figures["top1"])
            stated = {name: figures[name] for name in computed}
            pairs[f"{peer or 'our'} mean and deviation, and those of the seeds"] = stated, computed
    if shipped := result["weights"]:
        file = TRAINED / shipped["tag"] / WEIGHTS
        pairs["the weights of the package and their digest"] = file_digest(file), shipped["sha256"]
        stated = pretrained_info(shipped["tag"]).top1
        pairs["the accuracy of the tag and of the result"] = (
            stated,
            100 * shipped["correct"] / shipped["of"],
        )
    return [f"{name} differ: {a} and {b}" for name, (a, b) in pairs.items() if a != b]


def accuracy(folder: pathlib.Path, source: str | None) -> list[str]:
    """Returns whether the weights in the package classify other images correctly than stated."""
    shipped = read_json(folder / RESULT)["weights"]
    if shipped is None:
        return []
    with tempfile.TemporaryDirectory() as place:
        config = from_json(_placed(folder, source, pathlib.Path(place)))
        (split,) = open_data(config.data, [config.data.eval_split])
        right = correct(shipped["tag"], split)
    print(f"{shipped['tag']}: {right} of {len(split)} correct")
    stated = (shipped["correct"], shipped["of"])
    return [] if (right, len(split)) == stated else [f"{right} are correct, not {stated[0]}"]


def again(folder: pathlib.Path, source: str | None, steps: int) -> list[str]:
    """Trains the first steps again and returns the metrics that differ from the log."""
    expected = {row["step"]: row for row in read_metrics(folder) if "train/loss" in row}
    wanted = {step: row for step, row in expected.items() if step <= steps}
    if not wanted:
        return [f"the log has no step up to {steps}: give at least {min(expected)}"]
    exact = same_versions(read_json(folder / PROVENANCE))
    with tempfile.TemporaryDirectory() as place:
        config = _placed(folder, source, pathlib.Path(place))
        rows = _trained(config, pathlib.Path(place, "run"), max(wanted))
    if missing := sorted(wanted.keys() - rows.keys()):
        return [f"the run ended before step {missing[0]}: its message is above"]
    found, largest = [], 0.0
    for step, row in wanted.items():
        for name, value in row.items():
            if not name.startswith("train/") or name in TIMES:
                continue
            actual = rows[step].get(name)
            far = math.inf if actual is None else relative(actual, value)
            largest = max(largest, far)
            if far > (0 if exact else CLOSE):
                found.append(f"step {step}: {name} is {actual}, was {value}")
    how = "to the bit" if exact else "with other code or packages than the result's"
    print(
        f"{len(wanted)} rows of the log compared {how}, up to step {max(wanted)}; the largest "
        f"relative difference is {largest:.1e}"
    )
    return found


def relative(actual: float, expected: float) -> float:
    """Returns the difference of two values over the larger one, 0 for equal ones."""
    difference = abs(actual - expected)
    return difference / max(abs(actual), abs(expected)) if difference else 0.0


def same_versions(provenance: dict[str, Any]) -> bool:
    """Returns whether code and packages are those of a provenance."""
    packages = provenance["packages"]
    return provenance["code"] == code_digest() and packages == package_versions()


def _trained(config: pathlib.Path, workdir: pathlib.Path, steps: int) -> dict[int, Any]:
    """Trains until the log has a step, stops the run, and returns the log by step."""
    program = [sys.executable, "-m", "flaxres.cli", "train"]
    options = ["--config", str(config), "--workdir", str(workdir)]
    process = subprocess.Popen([*program, *options])
    while process.poll() is None:
        rows = read_metrics(workdir) if workdir.exists() else []
        if any(row["step"] >= steps for row in rows):
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(POLL_SECONDS)
    process.wait()
    return {row["step"]: row for row in read_metrics(workdir) if "train/loss" in row}


def _placed(folder: pathlib.Path, source: str | None, place: pathlib.Path) -> pathlib.Path:
    """Writes the config of a result with the folder of the data on this machine."""
    settings = read_json(folder / CONFIG)
    settings["data"]["source"] = source
    path = place / CONFIG
    path.write_text(json.dumps(settings))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=pathlib.Path, nargs="+", help="folders of results/")
    parser.add_argument("--source", help="the dataset's folder on this machine")
    parser.add_argument("--accuracy", action="store_true", help="classify the evaluation split")
    parser.add_argument("--again", type=int, metavar="N", help="train the first N steps again")
    chosen = parser.parse_args()
    failed = False
    for folder in chosen.folders:
        found = problems(folder)
        try:
            if chosen.accuracy and not found:
                found = accuracy(folder, chosen.source)
            if chosen.again and not found:
                found = again(folder, chosen.source, chosen.again)
        except InputError as error:
            found = [str(error)]
        failed |= bool(found)
        print("\n".join(f"{folder.name}: {line}" for line in found or ["sound"]))
    sys.exit(failed)


if __name__ == "__main__":
    main()
