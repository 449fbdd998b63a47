"""What the experiments have in common: their settings, and how results become pictures, tables and files."""

import csv
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flaxres import figures
from flaxres.errors import InputError, writing_to
from flaxres.training.workdir import replace_file

# Okabe & Ito's palette, which colour-blind readers tell apart; lines and markers differ as well.
STYLES: Mapping[str, dict[str, Any]] = {
    "plain": {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    "residual": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "preactivation": {"color": "#009E73", "linestyle": "-.", "marker": "^"},
    "dense": {"color": "#CC79A7", "linestyle": ":", "marker": "D"},
}
Say = Callable[[str], None]


def note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What every experiment can be asked for; each uses what concerns it.

    Attributes:
      out: folder for pictures, tables and the networks that are trained on the way, which are trained once and serve several experiments.
      seed: of initialisation, order, augmentation and random directions.
      scale: multiplies epochs and steps: below 1 for a first look, above it for smoother curves.
      data: 'digits' (8x8, bundled) or 'cifar10', for the networks that are trained; stacks of dense layers are always trained on digits.
      source, data_dir: where CIFAR-10's archive and prepared datasets are, as in `flaxres.DataConfig`.
      image: a photograph for `features`; by default the one that matplotlib brings.
      weights, model: a file of weights for `features` and its network, in place of the one that is trained here.
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
    """One sentence that the experiment puts to the test, what is measured for it, and the outcome for plain and for residual networks."""

    sentence: str
    measure: str
    plain: float | None
    residual: float | None
    holds: bool


@dataclasses.dataclass(frozen=True)
class Experiment:
    """`run(settings, say)` gives a dataclass of arrays; `draw` a matplotlib figure of it, `rows` a table, `claims` what it shows."""

    title: str
    run: Callable[[Settings, Say], Any]
    draw: Callable[[Any], Any]
    rows: Callable[[Any], Sequence[Mapping[str, Any]]]
    claims: Callable[[Any], Sequence[Claim]]


def conduct(
    name: str, experiment: Experiment, settings: Settings, say: Say = note
) -> dict[str, Any]:
    """Runs an experiment and writes `NAME.png`, `NAME.csv` and `NAME.json` into `settings.out`; returns what the JSON has.

    Raises InputError where the folder can't be written, or for settings that don't fit.
    """
    begun = time.perf_counter()
    with writing_to(settings.out):
        settings.out.mkdir(parents=True, exist_ok=True)
    say(f"{name}: {experiment.title}")
    result = experiment.run(settings, say)
    claims = experiment.claims(result)
    figures.save(experiment.draw(result), str(settings.out / f"{name}.png"), "--out")
    write_table(settings.out / f"{name}.csv", experiment.rows(result))
    facts = {
        "experiment": name,
        "seed": settings.seed,
        "seconds": round(time.perf_counter() - begun, 1),
        "claims": [plain(claim) for claim in claims],
        "result": plain(result),
    }
    replace_file(settings.out / f"{name}.json", json.dumps(facts) + "\n")
    for claim in claims:
        say(f"  {'holds' if claim.holds else 'DOES NOT HOLD'}: {claim.sentence}")
        say(f"    {claim.measure}: {told(claim)}")
    say(f"  {facts['seconds']:.0f} s, wrote {settings.out / name}.png, .csv and .json")
    return facts


def told(claim: Claim) -> str:
    values = (
        f"{kind} {value:.3g}"
        for kind, value in (("plain", claim.plain), ("residual", claim.residual))
        if value is not None
    )
    return ", ".join(values)


def write_table(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def summary(facts: Sequence[Mapping[str, Any]]) -> str:
    """A table in Markdown of what all experiments measured."""

    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.3g}"

    lines = ["| claim | measured | plain | residual | holds |", "|---|---|---|---|---|"]
    for fact in facts:
        for claim in fact["claims"]:
            cells = [
                claim["sentence"],
                f"{claim['measure']} (seed {fact['seed']})",
                shown(claim["plain"]),
                shown(claim["residual"]),
            ]
            lines.append(
                "| "
                + " | ".join(
                    cell.replace("|", "\\|") for cell in [*cells, "yes" if claim["holds"] else "no"]
                )
                + " |"
            )
    return "\n".join(lines) + "\n"


def plain(value: Any) -> Any:
    """A result as JSON has it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value.item() if isinstance(value, np.generic) else value
