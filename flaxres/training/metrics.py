"""Metrics of a run for programs: JSON lines, TensorBoard events, Weights & Biases, a summary."""

import hashlib
import importlib
import json
import math
import pathlib
from typing import Any

from flaxres.training.workdir import METRICS, SUMMARY, replace_file, write_errors


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the lines of `metrics.jsonl`, without a last line that a kill cut short."""
    rows = []
    path = workdir / METRICS
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Writer:
    """Writes the metrics of a run that starts or resumes at `step`.

    Drops lines of later steps, which a killed run left.

    Args:
      workdir: the workdir.
      step: the number of finished steps.
      tensorboard: also writes TensorBoard events.
      wandb: also logs to this project of Weights & Biases.
    """

    def __init__(
        self, workdir: pathlib.Path, step: int, tensorboard: bool, wandb: str | None = None
    ) -> None:
        self.workdir = workdir
        kept = [row for row in read_metrics(workdir) if row["step"] <= step]
        replace_file(workdir / METRICS, "".join(json.dumps(row) + "\n" for row in kept))
        self.file = (workdir / METRICS).open("a", buffering=1)
        self.events = None
        if tensorboard:
            import tensorboardX

            self.events = tensorboardX.SummaryWriter(str(workdir), purge_step=step + 1)
        self.wandb = None
        if wandb:
            # A resumed run keeps its id, so that its curves stay one.
            run_id = hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()[:16]
            self.wandb = importlib.import_module("wandb").init(
                project=wandb, id=run_id, name=workdir.name, dir=str(workdir), resume="allow"
            )

    def write(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """Writes the metrics of a step."""
        row = {"step": step, "epoch": round(epoch, 4), **values}
        with write_errors(self.workdir / METRICS):
            self.file.write(json.dumps(finite(row)) + "\n")
        if self.events:
            for name, value in values.items():
                self.events.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log(values, step=step)

    def flush(self) -> None:
        """Writes out pending events: called before a save, so that TensorBoard reaches as far."""
        if self.events:
            self.events.flush()

    def close(self) -> None:
        """Closes all files."""
        with write_errors(self.workdir / METRICS):
            self.file.close()
        if self.events:
            self.events.close()
        if self.wandb:
            self.wandb.finish()


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """Replaces NaN and infinity, which JSON does not have, by None."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }


def write_summary(workdir: pathlib.Path, summary: dict[str, Any]) -> None:
    """Writes `summary.json`."""
    replace_file(workdir / SUMMARY, json.dumps(finite(summary), indent=2) + "\n")
