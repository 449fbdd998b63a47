"""Metrics of a run for programs: JSON lines, loggers, a summary."""

import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from flaxres.config.schema import Config
from flaxres.printing import say
from flaxres.training.loggers import LOGGERS, End, Facts
from flaxres.training.sinks import BackgroundSink, Sink
from flaxres.training.workdir import METRICS, SUMMARY, replace_file, write_errors


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of `metrics.jsonl`; leaves out lines that are none."""
    return _rows(workdir)[0]


def _rows(workdir: pathlib.Path) -> tuple[list[dict[str, Any]], int]:
    """Returns the rows of `metrics.jsonl`, and the number of lines that are none.

    A last line that a kill cut short does not count.
    """
    path = workdir / METRICS
    text = path.read_bytes().decode(errors="replace") if path.exists() else ""
    read = [_row(line) for line in text.split("\n")]
    rows = [row for row in read if row is not None]
    # What follows the last line break is '' or cut short.
    return rows, read[:-1].count(None)


def _row(line: str) -> dict[str, Any] | None:
    """Returns the row that a line holds, None if it holds none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _values(row: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics of a row, NaN where JSON had none."""
    left_out = ("step", "epoch")
    return {
        key: math.nan if value is None else value
        for key, value in row.items()
        if key not in left_out
    }


class Writer:
    """Writes the metrics of a run that starts or resumes at `step`.

    Drops lines of later steps, which a killed run left. Metrics.jsonl must be written. A logger
    that fails is dropped with a line.

    Args:
      workdir: the workdir.
      step: the number of finished steps.
      config: the settings, which choose the loggers.
      say: gets a line about what is dropped.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        step: int,
        config: Config,
        say: Callable[[str], None] = say,
    ) -> None:
        self.workdir = workdir
        rows, bad = _rows(workdir)
        if bad:
            say(f"left out {bad} lines of {workdir / METRICS} that are no metrics of a run")
        kept = [row for row in rows if row["step"] <= step]
        replace_file(workdir / METRICS, "".join(json.dumps(row) + "\n" for row in kept))
        self.file = (workdir / METRICS).open("a", buffering=1, encoding="utf-8")
        earlier = [(row["step"], _values(row)) for row in kept]
        self.sinks: list[Sink] = []
        for kind in LOGGERS:
            if project := getattr(config.train, kind.setting):
                facts = Facts(workdir, step, config, project, earlier)
                sink = BackgroundSink if kind.remote else Sink
                self.sinks.append(sink(kind, facts, say))

    def write(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """Writes the metrics of a step."""
        row = {"step": step, "epoch": round(epoch, 4), **values}
        with write_errors(self.workdir / METRICS):
            self.file.write(json.dumps(finite(row)) + "\n")
        for sink in self.sinks:
            sink.write(step, values)

    def flush(self) -> None:
        """Writes out pending events: called before a save, so that TensorBoard reaches as far."""
        for sink in self.sinks:
            sink.flush()

    def close(self, end: End = "finished") -> None:
        """Closes all files, and ends the logs."""
        with write_errors(self.workdir / METRICS):
            self.file.close()
        for sink in self.sinks:
            sink.close(end)


def finite(value: Any) -> Any:
    """Replaces NaN and infinity, which JSON does not have, by None, at any depth.

    Examples:
      >>> finite({"precision": [1.0, float("nan")]})
      {'precision': [1.0, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def write_summary(workdir: pathlib.Path, summary: dict[str, Any]) -> None:
    """Writes `summary.json`."""
    replace_file(workdir / SUMMARY, json.dumps(finite(summary), indent=2) + "\n")
