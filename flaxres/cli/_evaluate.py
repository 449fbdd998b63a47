"""`flaxres evaluate`."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from flaxres.cli._options import parse_run
from flaxres.cli._process import PROCESSES, joined, silence
from flaxres.cli._words import JSON, Option, show, value_of
from flaxres.config.schema import Config
from flaxres.errors import InputError

DESCRIPTION = (
    "Evaluate the newest checkpoint of a run, every example once; or, with --config and --weights, "
    "a file of weights. With --full also write per-class scores, confusions, calibration and the "
    "most confident mistakes."
)
OPTIONS = (
    Option("--weights", "FILE", "Weights to evaluate in place of a checkpoint."),
    Option("--full", "", "Write a full evaluation into WORKDIR/evaluation."),
    Option("--out", "DIR", "With --full: write it into this folder."),
    Option("--images", "DIR", "With --full: evaluate on a folder of <class>/*.jpg."),
    Option("--real", "FILE", "With --full: measure by ImageNet's reassessed labels too."),
    JSON,
    *PROCESSES,
)
LISTED = 3
# Options with a path that --full takes.
FILES = ("out", "images", "real")


def evaluate(arguments: Sequence[str]) -> None:
    """Evaluates the newest checkpoint of a run; see `flaxres.evaluate`."""
    weights, rest = value_of(joined(arguments), "--weights")
    files: dict[str, str | None] = {}
    for name in FILES:
        files[name], rest = value_of(rest, f"--{name}")
    full, as_json = "--full" in rest, "--json" in rest
    rest = [word for word in rest if word not in ("--full", "--json")]
    if not full and (given := [name for name, value in files.items() if value is not None]):
        raise InputError(f"--{given[0]} needs --full: add it, or leave --{given[0]} away")
    config, workdir = parse_run(rest, None, "flaxres evaluate", DESCRIPTION, OPTIONS)
    silence()
    if full:
        _evaluate_fully(config, None if weights else workdir, weights, files, as_json)
        return
    from flaxres.training.hosts import leader
    from flaxres.training.loop import evaluate
    from flaxres.training.metrics import finite

    report = evaluate(config, workdir) if weights is None else evaluate(config, weights=weights)
    if leader():
        content = dataclasses.asdict(report)
        if report.mean_average_precision is None:
            del content["mean_average_precision"]
        print(json.dumps(finite(content)))


def _evaluate_fully(
    config: Config,
    workdir: str | None,
    weights: str | None,
    given: dict[str, str | None],
    as_json: bool,
) -> None:
    """Writes the files of a full evaluation, and prints a short table."""
    from flaxres.report.full import evaluate_fully
    from flaxres.training.hosts import leader
    from flaxres.training.metrics import finite

    content = evaluate_fully(config, workdir, weights=weights, **given)
    if leader():
        part = f"-{content['split']}" if given["images"] else ""
        lines = [*_lines(content), f"wrote {given['out'] or f'{workdir}/evaluation{part}'}"]
        show(as_json, finite(content), lines)


def _lines(content: dict[str, Any]) -> list[str]:
    """Returns the short table of a full evaluation."""
    if content.get("multi_label"):
        return _multi_label_lines(content)
    skipped = f", {content['skipped']} could not be decoded" if content["skipped"] else ""
    top = (f"top-{k} {100 * value:.2f}%" for k, value in content["top"].items())
    lines = [
        f"{content['split']}: {content['examples']:,} images of {content['classes']:,} classes"
        f"{skipped}; step {content['step']:,}",
        "accuracy      " + "  ".join(top),
        f"by class      balanced accuracy {100 * content['balanced_accuracy']:.2f}%  macro F1 "
        f"{100 * content['macro_f1']:.2f}%  mean average precision "
        f"{100 * content['mean_average_precision']:.2f}%",
        f"probabilities loss {content['loss']:.4f}  ECE {content['ece']:.4f}  MCE "
        f"{content['mce']:.4f}  Brier {content['brier']:.4f}",
    ]
    if real := content.get("real"):
        lines.append(f"reassessed    {100 * real['accuracy']:.2f}% of {real['examples']:,} images")
    hardest = [f"{row['class']} {100 * row['recall']:.1f}%" for row in content["hardest"][:LISTED]]
    confused = [f"{label} as {other} ({n})" for label, other, n in content["confused"][:LISTED]]
    if hardest:
        lines.append(f"hardest       {', '.join(hardest)}")
        lines.append(f"confused      {', '.join(confused)}")
    return lines


def _multi_label_lines(content: dict[str, Any]) -> list[str]:
    """Returns the short table where images have any number of labels."""
    lines = [
        f"{content['split']}: {content['examples']:,} images with {content['labels_per_image']:.2f}"
        f" of {content['classes']:,} classes on average; step {content['step']:,}",
        f"precision     mean average precision {100 * content['mean_average_precision']:.2f}%",
        f"above {content['threshold']:g}     micro F1 {100 * content['micro_f1']:.2f}%  macro F1 "
        f"{100 * content['macro_f1']:.2f}%  all labels right {100 * content['exact_match']:.2f}%",
        f"probabilities loss {content['loss']:.4f}  ECE {content['ece']:.4f}  MCE "
        f"{content['mce']:.4f}  Brier {content['brier']:.4f}",
    ]
    hardest = [
        f"{row['class']} {100 * row['average_precision']:.1f}%"
        for row in content["hardest"][:LISTED]
    ]
    return [*lines, *([f"hardest       {', '.join(hardest)}"] if hardest else [])]
