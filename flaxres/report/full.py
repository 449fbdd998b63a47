"""The full evaluation of a run, and the files that explain it."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from flaxres.config.files import resolved
from flaxres.config.schema import Config
from flaxres.data.source import Source
from flaxres.data.variants import open_variant
from flaxres.errors import InputError, writing_to
from flaxres.inference.runs import restore_alone
from flaxres.paths import expanded
from flaxres.report import folder as files, multi_label, summary
from flaxres.report.outputs import LabelledOutputs, Outputs, collect
from flaxres.report.reassessed import read_labels, reassessed
from flaxres.training import scores
from flaxres.training.hosts import leader
from flaxres.training.loop import restored
from flaxres.training.resume import require_same_config
from flaxres.training.run import Run, evaluation_transform
from flaxres.training.staging import local, publish
from flaxres.training.state import State

# Mistakes that are stored as images.
PICTURES = 48


def evaluate_fully(
    config: Config,
    workdir: str | os.PathLike[str] | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    images: str | None = None,
    real: str | None = None,
) -> dict[str, Any]:
    """Evaluates a checkpoint or weights, and writes files that explain the result.

    Writes `evaluation.json`, `per_class.csv`, `confusion.csv`, `mistakes.jsonl` and images of the
    most confident mistakes. Every example counts once, on any number of devices and processes.
    Where images have any number of labels (`data.multi_label`), there is no `confusion.csv`.

    Args:
      config: the settings of the run; those that only measure may differ.
      workdir: the workdir, of which the newest checkpoint is evaluated.
      weights: a file of weights in its place; see `load_weights`.
      out: the folder of the files; None is `evaluation` in the workdir, or with `images`
        `evaluation-NAME`.
      images: a folder `<class>/*.jpg` to evaluate on in place of the config's data, on one device.
        Its classes may be a part of the network's, which then chooses among these; see
        `flaxres.data.variants`.
      real: the file of ImageNet's reassessed labels; see `flaxres.report.reassessed`.

    Returns:
      The content of `evaluation.json`.

    Raises:
      InputError: as `flaxres.evaluate` does, or there is no folder for the files to be written to.

    Examples:
      >>> evaluate_fully(Config(), weights="resnet50.safetensors")
      Traceback (most recent call last):
      flaxres.errors.InputError: weights without a workdir need out (--out DIR) for the files
    """
    if out is None and weights is not None:
        raise InputError("weights without a workdir need out (--out DIR) for the files")
    if config.data.multi_label and (option := "images" if images else "real" if real else ""):
        raise InputError(f"--{option} with data.multi_label=True: it is for one label an image")
    if images is None:
        (run, state), numbers = restored(config, workdir, weights), None
    else:
        run, state, numbers = _on_images(config, workdir, images)
    possible = None if real is None else read_labels(real, len(run.train.classes))
    name = files.EVALUATION if images is None else f"{files.EVALUATION}-{run.evaluation.name}"
    target = local(workdir or "", "none") / name if out is None else expanded(out)
    if leader():
        files.clear(target)
    outputs = collect(run, state, numbers)
    figures, rows, mistakes = _explained(outputs, run.evaluation)
    content = _origin(run, int(state.step), weights) | figures
    if possible is not None and isinstance(outputs, Outputs):
        content["real"] = _reassessed(run, outputs, numbers, possible)
    if leader():
        _write(target, run, outputs, rows, mistakes, content)
        if out is None:
            publish(workdir or "", target)
    return content


def _explained(
    outputs: Outputs | LabelledOutputs, source: Source
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the figures, the row of each class, and the mistakes."""
    classes = source.classes
    if isinstance(outputs, LabelledOutputs):
        rows = multi_label.class_rows(outputs, classes)
        figures = multi_label.figures(outputs, rows)
        mistakes = multi_label.mistakes(outputs, classes)
    else:
        rows = summary.class_rows(outputs, classes)
        figures = summary.figures(outputs, rows)
        mistakes = summary.mistakes(outputs, classes)
    return figures | {"skipped": len(source) - figures["examples"]}, rows, mistakes


def _reassessed(
    run: Run,
    outputs: Outputs,
    numbers: Sequence[int] | None,
    possible: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """Returns the accuracy by reassessed labels, which number all classes of the network."""
    chosen = np.arange(len(run.train.classes)) if numbers is None else np.asarray(numbers)
    predicted = chosen[outputs.predicted].tolist()
    return reassessed(possible, run.evaluation, outputs.records.tolist(), predicted)


def _on_images(
    config: Config, workdir: str | os.PathLike[str] | None, images: str
) -> tuple[Run, State, tuple[int, ...]]:
    """Returns a run whose evaluation split is a folder, its state, and the folder's classes."""
    if workdir is None or jax.process_count() > 1:
        raise InputError("--images needs a workdir, and one process: give --workdir alone")
    config, folder = resolved(config), local(workdir)
    require_same_config(config, folder, measuring=True)
    run, state = restore_alone(config, folder)
    source, numbers = open_variant(images, run.train.classes)
    return dataclasses.replace(run, evaluation=source), state, numbers


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
    outputs: Outputs | LabelledOutputs,
    rows: Sequence[dict[str, Any]],
    mistakes: Sequence[dict[str, Any]],
    content: dict[str, Any],
) -> None:
    """Writes all files; the summary, which says that they are complete, comes last."""
    with writing_to(target):
        if isinstance(outputs, Outputs):
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
