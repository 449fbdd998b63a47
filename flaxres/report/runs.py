"""Reads what a workdir holds, for the page about it."""

import base64
import csv
import dataclasses
import json
import pathlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flaxres.config.files import from_json
from flaxres.config.schema import Config
from flaxres.errors import InputError
from flaxres.report import folder as files
from flaxres.report.summary import PER_CLASS
from flaxres.training.metrics import read_metrics
from flaxres.training.staging import local, shown
from flaxres.training.verification import DIGESTS, newest_sound, read_provenance
from flaxres.training.workdir import CHECKPOINTS, CONFIG, SUMMARY

# Images of mistakes on the page, for each run.
PICTURES = 24
# Entries of `evaluation.json` that the page shows.
FIGURES = (
    *("examples", "classes", "step", "skipped", "loss", "brier", "ece", "mce"),
    *("macro_f1", "mean_average_precision"),
)
SINGLE, MULTIPLE = ("balanced_accuracy",), ("labels_per_image", "exact_match", "micro_f1")
BINNED = ("counts", "confidence", "accuracy")
TYPES = {".png": "image/png", ".jpg": "image/jpeg"}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A full evaluation.

    Attributes:
      scores: the content of `evaluation.json`.
      classes: the rows of `per_class.csv`, with numbers where they are numbers.
      pairs: label, predicted class and count, the rows of `confusion.csv`; none where images have
        any number of labels.
      mistakes: the first rows of `mistakes.jsonl`, with `image` as the address of an image.
    """

    scores: dict[str, Any]
    classes: list[dict[str, Any]]
    pairs: list[tuple[str, str, int]]
    mistakes: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """The files of a workdir.

    Attributes:
      name: a short name, different for each run of a page.
      path: the workdir.
      config: the config.
      metrics: the rows of `metrics.jsonl`.
      summary: the content of `summary.json`; empty before the run is complete.
      checkpoint: the newest checkpoint that verifies: its step, digest and provenance; empty
        without one.
      evaluation: the full evaluation; None without one.
      others: the content of `evaluation.json` for each other test set.
    """

    name: str
    path: pathlib.Path
    config: Config
    metrics: list[dict[str, Any]]
    summary: dict[str, Any]
    checkpoint: dict[str, Any]
    evaluation: Evaluation | None
    others: list[dict[str, Any]]

    @property
    def command(self) -> str:
        """The command of the process that wrote the checkpoint; '' if it is not known."""
        words = self.checkpoint.get("provenance", {}).get("command") or []
        return _spelt([str(word) for word in words])

    @property
    def evaluate(self) -> str:
        """The command that makes the full evaluation."""
        return f"flaxres evaluate --full --workdir {shlex.quote(shown(self.path))}"

    @property
    def again(self) -> str:
        """The command that does the run again, in another workdir."""
        path = shlex.quote(str(self.path / CONFIG))
        again = shlex.quote(f"{shown(self.path)}-again")
        return f"flaxres train --config {path} --workdir {again}"


def read_runs(workdirs: Sequence[str]) -> list[RunFiles]:
    """Reads the files of workdirs.

    Raises:
      InputError: one is no workdir or is named twice, or a file of an evaluation can't be read.
    """
    paths = [local(workdir) for workdir in workdirs]
    for path, workdir in zip(paths, workdirs, strict=True):
        if not path.is_dir():
            raise InputError(f"{workdir!r} is not a folder: give the workdir of a run")
    places = [path.resolve() for path in paths]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise InputError(f"{workdirs[number]!r} is named twice: name each run once")
    names = short_names([place.parts for place in places])
    return [_read(path, name) for path, name in zip(places, names, strict=True)]


def short_names(paths: Sequence[Sequence[str]]) -> list[str]:
    """Returns as many of the last parts of each path as tell all of them apart.

    Examples:
      >>> short_names([("/", "a", "run"), ("/", "b", "run")])
      ['a/run', 'b/run']
    """
    for count in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-count:]).replace("//", "/") for parts in paths]
        if len(set(names)) == len(names):
            break
    return names


def _spelt(words: Sequence[str]) -> str:
    """Returns the words of a process as a command that can be typed."""
    if not words:
        return ""
    program, rest = pathlib.PurePath(words[0]), words[1:]
    if program.name == "flaxres":
        return shlex.join(["flaxres", *rest])
    if program.parts[-3:] == ("flaxres", "cli", "__main__.py"):
        return shlex.join(["python", "-m", "flaxres.cli", *rest])
    return shlex.join(["python", program.name if program.name == "train.py" else words[0], *rest])


def _read(path: pathlib.Path, name: str) -> RunFiles:
    """Reads a workdir."""
    config = from_json(path / CONFIG)
    summary: dict[str, Any] = {}
    if (path / SUMMARY).exists():
        try:
            summary = dict(json.loads((path / SUMMARY).read_text(encoding="utf-8")))
            _require_numbers(summary, ("seconds", "images_per_second", "input_stall_percent"))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"{str(path / SUMMARY)!r} can't be read ({error}): delete it and resume the run, "
                "which writes it again"
            ) from error
    return RunFiles(
        name=name,
        path=path,
        config=config,
        metrics=read_metrics(path),
        summary=summary,
        checkpoint=_checkpoint(path / CHECKPOINTS),
        evaluation=read_evaluation(path / files.EVALUATION),
        others=[
            found.scores
            for folder in sorted(path.glob(f"{files.EVALUATION}-*"))
            if (found := read_evaluation(folder)) is not None
        ],
    )


def _checkpoint(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the step, digest and provenance of the newest checkpoint that verifies."""
    step, refused = newest_sound(folder)
    facts: dict[str, Any] = {
        "refused": [f"step {saved.step}: {saved.problem}" for saved in refused]
    }
    if step is not None:
        digest = json.loads((folder / str(step) / DIGESTS).read_text())["sha256"]
        origin = read_provenance(folder / str(step))
        facts |= {"step": step, "digest": digest, "provenance": origin}
    return facts


def read_evaluation(folder: pathlib.Path) -> Evaluation | None:
    """Returns the full evaluation in a folder, None if there is none that is complete.

    Raises:
      InputError: a file is missing or can't be read.
    """
    if not (folder / files.SUMMARY).exists():
        return None
    try:
        scores = json.loads((folder / files.SUMMARY).read_text(encoding="utf-8"))
        _require_scores(scores)
        rows = [
            {key: _number(key, value) for key, value in row.items()}
            for row in _table(folder / files.PER_CLASS, PER_CLASS)
        ]
        table = [] if is_multi_label(scores) else _table(folder / files.CONFUSION, files.PAIRS)
        pairs = [(row["label"], row["predicted"], int(row["images"])) for row in table]
        text = (folder / files.MISTAKES).read_text(encoding="utf-8")
        mistakes = [json.loads(line) for line in text.splitlines()[:PICTURES]]
        for mistake in mistakes:
            mistake["image"] = _address(folder, mistake["picture"])
            _require_numbers(mistake, ("record", "confidence", "label_probability"))
            if not all(isinstance(mistake[name], str) for name in ("label", "predicted", "file")):
                raise ValueError(f"{mistake} is no mistake")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{str(folder)!r} is no full evaluation ({' '.join(str(error).split())}): run "
            "flaxres evaluate --full again"
        ) from error
    return Evaluation(scores, rows, pairs, mistakes)


def is_multi_label(scores: Mapping[str, Any]) -> bool:
    """Returns True for an evaluation whose images have any number of labels."""
    return scores.get("multi_label") is True


def _table(path: pathlib.Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Returns the rows of a CSV file with these columns."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if any(list(row) != list(columns) or None in row.values() for row in rows) or not rows:
        raise ValueError(f"{path.name} has not the columns {', '.join(columns)}")
    return rows


def _require_numbers(content: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raises ValueError where an entry is no number."""
    for name in names:
        if not isinstance(content.get(name), int | float):
            raise ValueError(f"{name}={content.get(name)!r} is no number")


def _require_scores(scores: Any) -> None:
    """Raises an error where the content of `evaluation.json` is not what the page needs."""
    _require_numbers(scores, (*FIGURES, *(MULTIPLE if is_multi_label(scores) else SINGLE)))
    _require_numbers(scores["top"], scores["top"])
    if "real" in scores:
        _require_numbers(scores["real"], ("accuracy", "examples"))
    bins = scores["calibration"]
    sizes = [len(bins["edges"]) - 1, *(len(bins[name]) for name in BINNED)]
    values = [*bins["edges"], *bins["counts"], *(v for v in bins["accuracy"] if v is not None)]
    values += [value for value in bins["confidence"] if value is not None]
    if len(set(sizes)) > 1 or not all(isinstance(value, int | float) for value in values):
        raise ValueError(f"{files.SUMMARY} has no calibration")
    if not isinstance(scores["split"], str):
        raise ValueError(f"{files.SUMMARY} has no name of a split")


def _number(column: str, value: str) -> Any:
    """Returns the value of a cell of `per_class.csv`; None for an empty one."""
    if column in ("class", "most_confused_with"):
        return value
    if column in ("images", "predicted", "correct", "confused"):
        return int(value)
    return float(value) if value else None


def _address(folder: pathlib.Path, name: str | None) -> str | None:
    """Returns an image as a `data:` address; None if it is not there."""
    if name is None:
        return None
    path = folder / files.PICTURES / pathlib.PurePath(name).name
    if path.suffix not in TYPES or not path.is_file():
        return None
    return f"data:{TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
