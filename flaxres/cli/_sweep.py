"""`flaxres sweep`: a config trained with several seeds, and their mean and deviation."""

import contextlib
import json
import math
import pathlib
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from flaxres.cli._options import parse_run
from flaxres.cli._words import JSON, Option, count_of, show
from flaxres.config.files import resolved, to_json
from flaxres.config.schema import Config
from flaxres.errors import writing_to
from flaxres.paths import expanded
from flaxres.printing import say
from flaxres.remote import is_address
from flaxres.training.staging import local, publish, staging_folder
from flaxres.training.workdir import SUMMARY, replace_file

RECIPE, SWEEP = "recipe.json", "sweep.json"
FIGURES = ("top1", "top5", "loss", "seconds")


def sweep(arguments: Sequence[str]) -> None:
    """Trains a config with several seeds, one process after another."""
    count, rest = count_of(arguments, "--seeds", 5)
    as_json = "--json" in rest
    config, workdir = parse_run(
        [word for word in rest if word != "--json"],
        "digits",
        "flaxres sweep",
        "Train a config with several seeds, from train.seed on, each in a folder of the workdir, "
        "and show the mean and the deviation. The same command goes on where it was stopped, and "
        "adds seeds to a finished sweep.",
        (Option("--seeds", "N", "Number of seeds (default: 5)."), JSON),
    )
    place = workdir if is_address(workdir) else str(expanded(workdir))
    seeds = range(config.train.seed, config.train.seed + count)
    recipe = _keep(place, RECIPE, to_json(resolved(config)))
    for seed in seeds:
        _train(recipe, f"{place}/seed{seed}", seed, len(seeds))
    facts = summary(config, place, seeds)
    _keep(place, SWEEP, json.dumps(facts, indent=1) + "\n")
    show(as_json, facts, table(facts))


def _keep(place: str, name: str, text: str) -> pathlib.Path:
    """Writes a file of the sweep, also at its address; returns its path on this machine."""
    folder = staging_folder(place, "reads") if is_address(place) else pathlib.Path(place)
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / name, text)
    publish(place, folder / name)
    return folder / name


def _train(recipe: pathlib.Path, workdir: str, seed: int, count: int) -> None:
    """Trains one seed in a process of its own, or resumes it.

    Raises:
      SystemExit: with the code of that process, if it is not 0.
    """
    words = ["--config", str(recipe), "--workdir", workdir, "--train.seed", str(seed)]
    say(f"seed {seed}, one of {count}, in {workdir}")
    with subprocess.Popen([sys.executable, "-m", "flaxres.cli", "train", *words]) as child:
        with _forwarding(child):
            code = child.wait()
    if code:
        say(f"flaxres: seed {seed} ended with code {code}: start the same command again to go on")
        raise SystemExit(code if code > 0 else 128 - code)


@contextlib.contextmanager
def _forwarding(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Leaves signals to a process, which saves its state and ends.

    A terminal sends Ctrl-C to it as well, and a second one would end it at once.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, lambda number, frame: None)
    signal.signal(signal.SIGTERM, lambda number, frame: child.send_signal(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def summary(config: Config, place: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Returns the figures of finished runs by seed, with mean, deviation and standard error.

    The deviation is that of a sample; both are None for a single seed.
    """
    runs = {
        str(seed): json.loads((local(f"{place}/seed{seed}", "none") / SUMMARY).read_bytes())
        for seed in seeds
    }
    facts: dict[str, Any] = {"model": config.model.name, "dataset": config.data.name, "runs": runs}
    for name in FIGURES:
        values = [run[name] for run in runs.values() if name in run]
        if len(values) < len(runs):  # top-5 of five classes or fewer
            continue
        deviation = statistics.stdev(values) if len(values) > 1 else None
        error = None if deviation is None else deviation / math.sqrt(len(values))
        mean = statistics.fmean(values)
        facts[name] = {"mean": mean, "deviation": deviation, "standard_error": error}
    return facts


def table(facts: dict[str, Any]) -> list[str]:
    """Returns the lines that the command prints."""

    def row(head: str, values: dict[str, float | None]) -> str:
        cells = [
            f"{value * scale:>9.{digits}f}" if (value := values.get(name)) is not None else " " * 9
            for name, scale, digits in (("top1", 100, 2), ("loss", 1, 4), ("seconds", 1 / 60, 1))
        ]
        return f"{head:<10}{''.join(cells)}"

    lines = [f"{'seed':<10}{'top-1 %':>9}{'loss':>9}{'minutes':>9}"]
    lines += [row(seed, run) for seed, run in facts["runs"].items()]
    for key in ("mean", "deviation"):
        lines.append(row(key, {name: facts[name][key] for name in FIGURES if name in facts}))
    return lines
