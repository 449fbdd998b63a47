"""The progress of a run on the terminal."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from flaxres.printing import STDERR


class Display:
    """Shows the progress of a run on stderr. A context manager.

    A terminal gets a live bar, other outputs a line now and then.

    Args:
      total: steps of the whole run.
      done: steps that are finished.
      enabled: False shows nothing, for processes other than the first.
      live: False shows lines on a terminal too.
    """

    def __init__(self, total: int, done: int, enabled: bool, live: bool) -> None:
        self.console = Console(
            file=STDERR, quiet=not enabled, highlight=False, markup=False, soft_wrap=True
        )
        self.total, self.first, self.start = total, done, 0.0
        columns = (
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
        )
        disable = not (enabled and live and STDERR.isatty())
        self.bar = Progress(*columns, console=self.console, disable=disable)
        self.task = self.bar.add_task("train", total=total, completed=done, text="compiling")

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """Prints a line."""
        self.console.print(text)

    def step(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """Shows the metrics of a step and the time that is left."""
        now = time.perf_counter()
        if self.start:
            seconds_per_step = (now - self.start) / max(step - self.first, 1)
            left = clock(seconds_per_step * (self.total - step))
        else:  # the first steps wait for a cold machine
            self.first, self.start = step, now
            left = "?" if step < self.total else clock(0)
        text = (
            f"epoch {epoch:.1f}  loss {values['train/loss']:.3f}  "
            f"lr {values['train/learning_rate']:.4g}  "
            f"{values['train/images_per_second']:.0f} images/s  "
            f"stall {values['train/input_stall_percent']:.1f}%  left {left}"
        )
        if self.bar.disable:
            self.say(f"step {step}/{self.total}  {text}")
        else:
            self.bar.update(self.task, completed=step, text=text)


def clock(seconds: float) -> str:
    """Returns a duration as minutes and seconds, or as hours, minutes and seconds.

    Examples:
      >>> clock(3725)
      '1:02:05'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
