"""The account of a run for the model card of its weights: figures, settings, digests, versions."""

import json
import os
import pathlib
from typing import Any

from flaxres.config.files import from_json
from flaxres.config.schema import Config
from flaxres.config.settings import SETTINGS, flat
from flaxres.errors import InputError
from flaxres.training.provenance import ARITHMETIC, from_json as read_origin
from flaxres.training.staging import local, shown
from flaxres.training.verification import newest_sound, read_provenance
from flaxres.training.workdir import CHECKPOINTS, CONFIG, SUMMARY


def about_run(workdir: str | os.PathLike[str]) -> str:
    """Describes a run in Markdown.

    It has the accuracy, the digests of the data, the versions of the libraries, and the settings
    that differ from the defaults. Paths of this machine are left out.

    Args:
      workdir: the workdir of a run that was trained to its end.

    Raises:
      InputError: the folder has no run, no checkpoint that verifies, or no `summary.json` of that
        checkpoint.
    """
    folder = local(workdir)
    config = from_json(folder / CONFIG)
    step, _ = newest_sound(folder / CHECKPOINTS)
    if step is None:
        raise InputError(
            f"workdir {shown(folder)!r} has no checkpoint that verifies: give that of a finished "
            "run"
        )
    summary = _summary(folder / SUMMARY, step)
    origin, progress = read_origin(read_provenance(folder / CHECKPOINTS / str(step)))
    evaluation, _, digest = origin.evaluation.rpartition(" ")
    versions = {name: origin.packages[name] for name in ARITHMETIC if name in origin.packages}
    precision = summary.get("mean_average_precision")
    rows = {
        "mean average precision": "" if precision is None else f"{100 * precision:.2f}%",
        "top-1": f"{100 * summary['top1']:.2f}% of {summary['examples']:,} examples",
        "top-5": f"{100 * summary['top5']:.2f}%" if "top5" in summary else "",
        "loss": f"{summary['loss']:.4f}",
        "evaluated on": f"`{evaluation}`, SHA-256 `{digest}`",
        "trained on": f"`{config.data.name}`, SHA-256 `{origin.data}`",
        "training": f"{step:,} steps of {config.train.batch_size} images, seed "
        f"{config.train.seed}, {progress.seconds[0] / 60:.1f} minutes on {origin.devices}",
        "made with": f"flaxres {origin.flaxres} (code `{origin.code[:12]}`), "
        + ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items() if value)
    settings = json.dumps(_changed(config), indent=2, ensure_ascii=False)
    return (
        "An image classifier, trained by flaxres.\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        f"Settings that differ from the defaults:\n\n```json\n{settings}\n```"
    )


def _summary(path: pathlib.Path, step: int) -> dict[str, Any]:
    """Reads the summary of the run's checkpoint."""
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if int(summary["step"]) == step:
            return {**summary, "top1": float(summary["top1"]), "loss": float(summary["loss"])}
        reason = f"it is of step {summary['step']}"
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise InputError(
        f"{str(path)!r} has not the accuracy of step {step}, the newest checkpoint ({reason}): "
        "train the run to its end"
    )


def _changed(config: Config) -> dict[str, Any]:
    """Returns the settings that differ from the defaults and are not this machine's own."""
    defaults = flat(Config())
    return {
        name: value
        for name, value in flat(config).items()
        if value != defaults[name] and not SETTINGS[name].facts.local
    }
