"""What a run writes for people and programs: JSON lines, TensorBoard events, a summary, curves, and what the terminal shows."""

import contextlib
import hashlib
import importlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from flaxres import figures
from flaxres.errors import InputError, WriteError

METRICS, SUMMARY, CURVES = "metrics.jsonl", "summary.json", "curves.png"


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a last line that a kill cut short is left out."""
    rows = []
    path = workdir / METRICS
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def replace_file(path: pathlib.Path, text: str) -> None:
    """Writes `text` so that a reader, or a kill, finds the old file or the new one and nothing between."""
    part = path.with_name(path.name + ".part")
    with naming(path):
        part.write_text(text)
        part.replace(path)


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Raises WriteError, with the path, where the system says no more than that a disk is full."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteError(
            f"{path} can't be written ({reason}); what was saved is intact: make room and start the same command again"
        ) from error


class Writer:
    """Writes metrics of a run that starts or goes on at `step`: lines of later steps, left by a killed run, are dropped."""

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
            # A run that goes on keeps its id, so that its curves stay one.
            number = hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()[:16]
            self.wandb = importlib.import_module("wandb").init(
                project=wandb, id=number, name=workdir.name, dir=str(workdir), resume="allow"
            )

    def write(self, step: int, epoch: float, values: dict[str, float]) -> None:
        row = {"step": step, "epoch": round(epoch, 4), **values}
        with naming(self.workdir / METRICS):
            self.file.write(json.dumps(finite(row)) + "\n")
        if self.events:
            for name, value in values.items():
                self.events.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log(values, step=step)

    def flush(self) -> None:
        """Before a save: what TensorBoard shows then reaches as far as the checkpoint."""
        if self.events:
            self.events.flush()

    def close(self) -> None:
        with naming(self.workdir / METRICS):
            self.file.close()
        if self.events:
            self.events.close()
        if self.wandb:
            self.wandb.finish()


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: both become null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }


def write_summary(workdir: pathlib.Path, summary: dict[str, Any]) -> None:
    replace_file(workdir / SUMMARY, json.dumps(finite(summary), indent=2) + "\n")


def draw_curves(workdir: pathlib.Path, title: str) -> None:
    """`curves.png`: loss, top-1 error and learning rate by epoch, from `metrics.jsonl`."""
    plt = figures.pyplot()
    rows = read_metrics(workdir)

    def curve(name: str) -> tuple[list[float], list[float]]:
        points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
        return [x for x, _ in points], [y for _, y in points]

    def lone(points: tuple[list[float], list[float]]) -> str:
        return "o" if len(points[0]) < 10 else ""  # a line through one point can't be seen

    figure, (loss, error, rate) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    # Blue and orange of Okabe & Ito's palette, which colour-blind readers tell apart; markers differ as well.
    for name, label, colour, mark in (
        ("train/loss", "training", "#0072B2", ""),
        ("eval/loss", "evaluation", "#D55E00", "o"),
    ):
        points = curve(name)
        loss.plot(*points, color=colour, label=label, marker=mark or lone(points), markersize=3)
    for name, label, colour, mark in (
        ("train/top1", "training, augmented", "#0072B2", ""),
        ("eval/top1", "evaluation", "#D55E00", "o"),
    ):
        epochs, accuracies = curve(name)
        error.plot(
            epochs,
            [100 * (1 - accuracy) for accuracy in accuracies],
            color=colour,
            label=label,
            marker=mark or lone((epochs, accuracies)),
            markersize=3,
        )
    rate.plot(
        *(points := curve("train/learning_rate")),
        color="#0072B2",
        marker=lone(points),
        markersize=3,
    )
    loss.set(title="Loss", xlabel="epoch", ylabel="cross-entropy, nats")
    error.set(title="Top-1 error", xlabel="epoch", ylabel="error, %")
    rate.set(title="Learning rate", xlabel="epoch", ylabel="learning rate")
    for axes in (loss, error, rate):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    for axes in (loss, error):
        axes.legend()
    figure.suptitle(title)
    part = workdir / (CURVES + ".part")
    figure.savefig(part, dpi=110, format="png")
    plt.close(figure)
    part.replace(workdir / CURVES)


def require_writable(workdir: pathlib.Path) -> None:
    """Raises InputError where nothing can be written into `workdir`. Leaves no trace: a run that is refused later makes no folder."""
    probe = workdir / f".writable-{os.getpid()}"
    try:
        made = [path for path in (workdir, *workdir.parents) if not path.exists()]
        workdir.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
        for path in made:
            path.rmdir()
    except OSError as error:
        raise InputError(
            f"workdir {str(workdir)!r} can't be written ({error.strerror}): give another --workdir"
        ) from error


class Display:
    """The progress of a run: a live bar on a terminal, a line now and then elsewhere, nothing on hosts other than the first."""

    def __init__(self, total: int, done: int, enabled: bool, live: bool) -> None:
        self.console = Console(
            stderr=True, quiet=not enabled, highlight=False, markup=False, soft_wrap=True
        )
        self.total, self.first, self.start = total, done, 0.0
        columns = (
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
        )
        self.bar = Progress(
            *columns, console=self.console, disable=not (enabled and live and sys.stderr.isatty())
        )
        self.task = self.bar.add_task("train", total=total, completed=done, text="compiling")

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        self.console.print(text)

    def step(self, step: int, epoch: float, values: dict[str, float]) -> None:
        now = time.perf_counter()
        if self.start:
            left = clock((now - self.start) / max(step - self.first, 1) * (self.total - step))
        else:  # the first steps wait for a cold machine
            self.first, self.start, left = step, now, "?" if step < self.total else clock(0)
        text = (
            f"epoch {epoch:.1f}  loss {values['train/loss']:.3f}  lr {values['train/learning_rate']:.4g}  "
            f"{values['train/images_per_second']:.0f} images/s  stall {values['train/input_stall_percent']:.1f}%  left {left}"
        )
        if self.bar.disable:
            self.say(f"step {step}/{self.total}  {text}")
        else:
            self.bar.update(self.task, completed=step, text=text)


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
