"""The full evaluation of a run, and the files that explain it."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxres.config.schema import Config
from flaxres.errors import InputError, writing_to
from flaxres.paths import expanded
from flaxres.report import folder as files, scores, summary
from flaxres.report.outputs import Outputs, collect
from flaxres.training.hosts import leader
from flaxres.training.loop import restored
from flaxres.training.run import Run, evaluation_transform

# Mistakes that are stored as images.
PICTURES = 48


def evaluate_fully(
    config: Config,
    workdir: str | os.PathLike[str] | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Evaluates a checkpoint or weights, and writes files that explain the result.

    Writes `evaluation.json`, `per_class.csv`, `confusion.csv`, `mistakes.jsonl` and images of the
    most confident mistakes. Every example counts once, on any number of devices and processes.

    Args:
      config: the settings of the run; those that only measure may differ.
      workdir: the workdir, of which the newest checkpoint is evaluated.
      weights: a file of weights in its place; see `load_weights`.
      out: the folder of the files; None is `evaluation` in the workdir.

    Returns:
      The content of `evaluation.json`.

    Raises:
      InputError: as `flaxres.evaluate` does, or the files can't be written, or there is no folder
        for them.

    Examples:
      >>> evaluate_fully(Config(), weights="resnet50.safetensors")
      Traceback (most recent call last):
      flaxres.errors.InputError: weights without a workdir need out (--out DIR) for the files
    """
    if out is None and weights is not None:
        raise InputError("weights without a workdir need out (--out DIR) for the files")
    run, state = restored(config, workdir, weights)
    target = expanded(workdir or "") / files.EVALUATION if out is None else expanded(out)
    if leader():
        with writing_to(target):
            files.clear(target)
    outputs = collect(run, state)
    rows = summary.class_rows(outputs, run.evaluation.classes)
    content = _origin(run, int(state.step), weights) | summary.figures(outputs, rows)
    content["skipped"] = len(run.evaluation) - content["examples"]
    if leader():
        with writing_to(target):
            _write(target, run, outputs, rows, content)
    return content


def _origin(run: Run, step: int, weights: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Returns what was evaluated: the step, the split, and the settings that measure."""
    data = run.config.data
    return {
        "step": step,
        "weights": None if weights is None else str(weights),
        "split": run.evaluation.name,
        "digest": run.evaluation.digest,
        "settings": {
            name: getattr(data, name)
            for name in ("eval_size", "eval_resize", "interpolation", "eval_flip", "eval_shift")
        },
    }


def _write(
    target: pathlib.Path,
    run: Run,
    outputs: Outputs,
    rows: Sequence[dict[str, Any]],
    content: dict[str, Any],
) -> None:
    """Writes all files; the summary, which says that they are complete, comes last."""
    classes = run.evaluation.classes
    pairs = scores.confusion(outputs.labels, outputs.predicted).tolist()
    files.write_table(
        target / files.CONFUSION,
        files.PAIRS,
        ((classes[label], classes[predicted], count) for label, predicted, count in pairs),
    )
    files.write_table(
        target / files.PER_CLASS, summary.PER_CLASS, (list(row.values()) for row in rows)
    )
    mistakes = summary.mistakes(outputs, classes)
    transform = evaluation_transform(run.config.data)
    for number, mistake in enumerate(mistakes):
        mistake["file"] = run.evaluation.file_name(mistake["record"])
        mistake["picture"] = None
        if number < PICTURES:
            encoded, _ = run.evaluation.read(mistake["record"])
            pixels = transform(encoded, np.zeros(0))
            mistake["picture"] = files.write_picture(target, number + 1, pixels)
    files.write_lines(target / files.MISTAKES, mistakes)
    files.write_json(target / files.SUMMARY, content)
