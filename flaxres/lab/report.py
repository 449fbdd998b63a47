"""Settings, claims and output files that all experiments share."""

import csv
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flaxres import figures
from flaxres.errors import InputError, writing_to
from flaxres.printing import say
from flaxres.training.workdir import replace_file

# Okabe & Ito's palette, which colour-blind readers tell apart; lines and markers differ as well.
STYLES: Mapping[str, dict[str, Any]] = {
    "plain": {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    "residual": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "preactivation": {"color": "#009E73", "linestyle": "-.", "marker": "^"},
    "dense": {"color": "#CC79A7", "linestyle": ":", "marker": "D"},
}
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of all experiments; each uses those that concern it.

    Attributes:
      out: folder for images, tables and trained networks. A network is trained once and serves
        several experiments.
      seed: seed of initialisation, order, augmentation and random directions.
      scale: factor of epochs and steps; below 1 for a first look, above 1 for smoother curves.
      data: 'digits' (8x8, bundled) or 'cifar10', for the networks that are trained. Stacks of dense
        layers are always trained on digits.
      source, data_dir: location of CIFAR-10's archive and of prepared datasets, as in
        `flaxres.DataConfig`.
      image: a photograph for `features`; by default the one that matplotlib ships.
      weights, model: a weight file for `features` and its network, in place of the network that is
        trained here.

    Raises:
      InputError: `data` is unknown, `scale` is not positive, or only one of `weights` and `model`
        is set.

    Examples:
      >>> Settings(pathlib.Path("lab"), scale=0.5).data
      'digits'
    """

    out: pathlib.Path
    seed: int = 0
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
        if (self.weights is None) != (self.model is None):
            raise InputError("--weights FILE and --model NAME go together: give both")


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement that an experiment tests, and the outcome.

    Attributes:
      sentence: the statement.
      measure: the measured quantity and its unit.
      plain, residual: its value for plain and for residual networks; None if there is none.
      holds: whether the values support the statement.
    """

    sentence: str
    measure: str
    plain: float | None
    residual: float | None
    holds: bool


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment as a set of functions.

    Attributes:
      title: one line for the terminal.
      run: `(settings, say) -> result`, a dataclass of arrays. `say` takes lines of progress.
      draw: `result -> figure`, of matplotlib.
      rows: `result -> rows` of a table, as dictionaries.
      claims: `result -> claims` that the result supports or refutes.
    """

    title: str
    run: Callable[[Settings, Say], Any]
    draw: Callable[[Any], Any]
    rows: Callable[[Any], Sequence[Mapping[str, Any]]]
    claims: Callable[[Any], Sequence[Claim]]


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
      The content of the JSON file: `experiment`, `seed`, `seconds`, `claims` and `result`.

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
    result = experiment.run(settings, say)
    claims = experiment.claims(result)
    figures.save(experiment.draw(result), str(settings.out / f"{name}.png"), "--out")
    _write_table(settings.out / f"{name}.csv", experiment.rows(result))
    facts = {
        "experiment": name,
        "seed": settings.seed,
        "seconds": round(time.perf_counter() - start, 1),
        "claims": [_jsonable(claim) for claim in claims],
        "result": _jsonable(result),
    }
    replace_file(settings.out / f"{name}.json", json.dumps(facts) + "\n")
    for claim in claims:
        say(f"  {'holds' if claim.holds else 'DOES NOT HOLD'}: {claim.sentence}")
        say(f"    {claim.measure}: {_values(claim)}")
    say(f"  {facts['seconds']:.0f} s, wrote {settings.out / name}.png, .csv and .json")
    return facts


def _values(claim: Claim) -> str:
    values = (("plain", claim.plain), ("residual", claim.residual))
    return ", ".join(f"{kind} {value:.3g}" for kind, value in values if value is not None)


def _write_table(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def summary(facts: Sequence[Mapping[str, Any]]) -> str:
    """Returns a Markdown table of the claims of several experiments.

    Args:
      facts: what `conduct` returned, one an experiment.
    """

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3g}"

    lines = ["| claim | measured | plain | residual | holds |", "|---|---|---|---|---|"]
    for fact in facts:
        for claim in fact["claims"]:
            cells = [
                claim["sentence"],
                f"{claim['measure']} (seed {fact['seed']})",
                number(claim["plain"]),
                number(claim["residual"]),
                "yes" if claim["holds"] else "no",
            ]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


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
