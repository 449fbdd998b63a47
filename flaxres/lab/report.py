"""Settings and output files that all experiments share."""

import csv
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flaxres import figures
from flaxres.errors import InputError, writing_to
from flaxres.lab.claims import Claim, Outcome, text
from flaxres.printing import say
from flaxres.training.workdir import replace_file

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of all experiments; each uses those that concern it.

    Attributes:
      out: folder for images, tables and trained networks. A network is trained once and serves
        several experiments.
      seed: the first seed, of initialisation, order, augmentation and random directions.
      seeds: number of seeds, `seed` and those after it.
      scale: factor of epochs and steps; below 1 for a first look, above 1 for smoother curves.
      data: 'digits' (8x8, bundled) or 'cifar10', for the networks that are trained. Stacks of dense
        layers are always trained on digits.
      source, data_dir: location of CIFAR-10's archive and of prepared datasets, as in
        `flaxres.DataConfig`.
      image: a photograph for `features`; by default the one that matplotlib ships.
      weights, model: a weight file for `features` and its network, in place of the network that is
        trained here.

    Raises:
      InputError: `data` is unknown, `scale` is not positive, there is no seed, or only one of
        `weights` and `model` is set.

    Examples:
      >>> Settings(pathlib.Path("lab"), scale=0.5).data
      'digits'
    """

    out: pathlib.Path
    seed: int = 0
    seeds: int = 1
    scale: float = 1.0
    data: str = "digits"
    source: str | None = None
    data_dir: str | None = None
    image: str | None = None
    weights: str | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        if self.data not in ("digits", "cifar10"):
            raise InputError(f"--data={self.data!r}: the rule is digits or cifar10")
        if not 0 < self.scale < float("inf"):
            raise InputError(f"--scale={self.scale}: the rule is > 0")
        if self.seed < 0:
            raise InputError(f"--seed={self.seed}: the rule is >= 0")
        if self.seeds < 1:
            raise InputError(f"--seeds={self.seeds}: the rule is >= 1")
        if (self.weights is None) != (self.model is None):
            raise InputError("--weights FILE and --model NAME go together: give both")

    @property
    def all_seeds(self) -> list[int]:
        """The seeds."""
        return [self.seed + number for number in range(self.seeds)]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment as a set of functions.

    Attributes:
      title: one line for the terminal.
      run: `(settings, say) -> results`, a dataclass of arrays for each seed. `say` takes lines of
        progress.
      draw: `results -> figure`, of matplotlib.
      rows: `result -> rows` of a table, as dictionaries.
      claims: `result -> claims` that the result supports or refutes.
    """

    title: str
    run: Callable[[Settings, Say], Sequence[Any]]
    draw: Callable[[Sequence[Any]], Any]
    rows: Callable[[Any], Sequence[Mapping[str, Any]]]
    claims: Callable[[Any], Sequence[Claim]]


def seed_by_seed(run: Callable[[Settings, Say], Any]) -> Callable[[Settings, Say], list[Any]]:
    """Decorates the `run` of an experiment for one seed: it is repeated with each.

    Args:
      run: `(settings, say) -> result`, which uses `settings.seed`.

    Returns:
      `(settings, say) -> results`, one a seed.
    """

    @functools.wraps(run)
    def repeated(settings: Settings, say: Say) -> list[Any]:
        results = []
        for seed in settings.all_seeds:
            if settings.seeds > 1:
                say(f"  seed {seed}")
            results.append(run(dataclasses.replace(settings, seed=seed, seeds=1), say))
        return results

    return repeated


def conduct(
    name: str, experiment: Experiment, settings: Settings, say: Say = say
) -> dict[str, Any]:
    """Runs an experiment and writes `NAME.png`, `NAME.csv` and `NAME.json` into `settings.out`.

    Args:
      name: name of the experiment and its files.
      experiment: a value of `flaxres.lab.EXPERIMENTS`.
      settings: settings of the experiment.
      say: receives lines of progress; by default they are printed to stderr.

    Returns:
      The content of the JSON file: `experiment`, `seeds`, `seconds`, `claims` (`Outcome`s) and
      `results`, one a seed.

    Raises:
      InputError: the folder can't be written, or a setting does not suit the experiment.

    Examples:
      >>> import tempfile
      >>> from flaxres.lab import EXPERIMENTS
      >>> settings = Settings(pathlib.Path(tempfile.mkdtemp()))
      >>> facts = conduct("block", EXPERIMENTS["block"], settings, say=lambda line: None)
      >>> facts["claims"][0]["sentence"]
      'A residual block falls back to the identity when its weights are zero'
      >>> sorted(path.name for path in settings.out.iterdir())
      ['block.csv', 'block.json', 'block.png']
    """
    start = time.perf_counter()
    with writing_to(settings.out):
        settings.out.mkdir(parents=True, exist_ok=True)
    say(f"{name}: {experiment.title}")
    results = experiment.run(settings, say)
    of_seeds = zip(*map(experiment.claims, results), strict=True)
    outcomes = [Outcome.of(claims) for claims in of_seeds]
    figures.save(experiment.draw(results), str(settings.out / f"{name}.png"), "--out")
    rows = [
        {"seed": seed} | dict(row)
        for seed, result in zip(settings.all_seeds, results, strict=True)
        for row in experiment.rows(result)
    ]
    _write_table(settings.out / f"{name}.csv", rows)
    facts = {
        "experiment": name,
        "seeds": settings.all_seeds,
        "seconds": round(time.perf_counter() - start, 1),
        "claims": [_jsonable(outcome) for outcome in outcomes],
        "results": _jsonable(results),
    }
    replace_file(settings.out / f"{name}.json", json.dumps(facts) + "\n")
    for outcome in outcomes:
        _say_outcome(outcome, say)
    say(f"  {facts['seconds']:.0f} s, wrote {settings.out / name}.png, .csv and .json")
    return facts


def _say_outcome(outcome: Outcome, say: Say) -> None:
    words = {"yes": "holds", "no": "DOES NOT HOLD"}
    holds = words.get(outcome.verdict, f"holds for {outcome.verdict} seeds")
    say(f"  {holds}: {outcome.sentence}")
    both = (("plain", outcome.plain), ("residual", outcome.residual))
    parts = [f"{kind} {text(values, outcome.powers)}" for kind, values in both if values]
    say(f"    {outcome.measure}: {', '.join(parts)}")


def _write_table(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def summary(facts: Sequence[Mapping[str, Any]]) -> str:
    """Returns a Markdown table of the claims of several experiments.

    Values are means over the seeds with the standard deviation of a sample.

    Args:
      facts: what `conduct` returned, one an experiment.
    """
    lines = ["| claim | measured | plain | residual | holds |", "|---|---|---|---|---|"]
    for fact in facts:
        for claim in fact["claims"]:
            outcome = Outcome(**claim)
            values = (text(one, outcome.powers) for one in (outcome.plain, outcome.residual))
            cells = [outcome.sentence, outcome.measure, *values, outcome.verdict]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    seeds = facts[0]["seeds"]
    several = f"Seeds {seeds[0]} to {seeds[-1]}: mean and standard deviation of a sample."
    return "\n".join([*lines, "", several if len(seeds) > 1 else f"Seed {seeds[0]}."]) + "\n"


def _jsonable(value: Any) -> Any:
    """Returns a result in the types that JSON has; numbers that are not finite become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: _jsonable(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {str(key): _jsonable(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return _jsonable(value.tolist())
    if isinstance(value, list | tuple):
        return [_jsonable(one) for one in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value.item() if isinstance(value, np.generic) else value
