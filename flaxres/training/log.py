"""The log of a run: it decides which metrics are read when, and keeps the clock of training."""

import collections
import contextlib
import dataclasses
import itertools
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from flaxres.data.loader import Loader
from flaxres.training import hosts, pace
from flaxres.training.display import Display
from flaxres.training.evaluation import Report
from flaxres.training.metrics import Writer
from flaxres.training.run import Run
from flaxres.training.signals import Preempted

FETCH_BEHIND = 2


class Log:
    """Logs metrics without making the device wait for the host. A context manager.

    The metrics of a step are read at the first dispatch after they are computed; at the latest two
    dispatches later, or before a pause. Times leave out evaluations and saves.

    Args:
      run: the run.
      folder: the workdir.
      first: the number of finished steps.
      before: seconds that earlier processes of the run trained, and of these, waited for input.
      display: shows the metrics.
      loader: the loader, whose waiting counts as stall; None where the dataset is resident.
    """

    def __init__(
        self,
        run: Run,
        folder: pathlib.Path,
        first: int,
        before: tuple[float, float],
        display: Display,
        loader: Loader | None,
    ) -> None:
        train = run.config.train
        self.batch_size, self.every = train.batch_size, train.log_every_steps
        self.steps, self.steps_per_epoch = run.steps, run.steps_per_epoch
        self.display, self.loader, self.before = display, loader, before
        self.writer = None
        if hosts.leader():
            self.writer = Writer(folder, first, run.config, display.say)
        self.pending: collections.deque[tuple[int, int, dict[str, Any]]] = collections.deque()
        self.dispatched = 0
        self.unchecked: collections.deque[tuple[int, int, int, Any]] = collections.deque()
        self.last_step, self.last_times = first, (0.0, 0.0)
        self.compared = (0.0, 0.0)
        self.start()

    def start(self) -> None:
        """Sets the clock of training to zero, once the step is compiled and a batch is ready."""
        self.trained, self.running, self.since = 0.0, True, time.perf_counter()
        self.waited_before = self.loader.stall_seconds if self.loader else 0.0

    @contextlib.contextmanager
    def paused(self, state: Any) -> Iterator[None]:
        """Stops the clock of training once `state` is computed, and logs all pending metrics."""
        jax.block_until_ready(state)
        self.flush()
        self.trained, self.running = self.times()[0], False
        if self.writer:
            self.writer.flush()
        try:
            yield
        finally:
            self.since, self.running = time.perf_counter(), True

    def times(self) -> tuple[float, float]:
        """Returns the seconds that this process trained, and of these, waited for input."""
        trained = self.trained + (time.perf_counter() - self.since if self.running else 0.0)
        stalled = self.loader.stall_seconds - self.waited_before if self.loader else 0.0
        return trained, stalled

    def all_times(self) -> tuple[float, float]:
        """Returns `times` with those of earlier processes of the run."""
        trained, stalled = self.times()
        return self.before[0] + trained, self.before[1] + stalled

    def add(self, last: int, count: int, values: Any) -> None:
        """Records a dispatch, and logs each `log_every_steps`-th of its steps and the run's last.

        Args:
          last: the last step of the dispatch.
          count: the number of its steps.
          values: their metrics, () each, or arrays for several steps.
        """
        self.dispatched += 1
        for i, step in enumerate(range(last - count + 1, last + 1)):
            if step % self.every == 0 or step == self.steps:
                of_step = {key: value[i] if value.ndim else value for key, value in values.items()}
                self.pending.append((self.dispatched, step, of_step))
        self.emit(len(list(itertools.takewhile(self.is_due, self.pending))))
        self.unchecked.append((self.dispatched, last, count, values["finite"]))

    def is_due(self, entry: tuple[int, int, dict[str, Any]]) -> bool:
        """Returns whether metrics are to be read; those of CPUs may be there after a dispatch."""
        dispatch, _, values = entry
        late = dispatch + FETCH_BEHIND <= self.dispatched
        return late or all(value.is_ready() for value in values.values())

    def non_finite(self, everything: bool) -> list[int]:
        """Returns the steps that were not finite and were not returned before.

        Args:
          everything: also waits for the dispatches under way.
        """
        steps: list[int] = []
        while self.unchecked and (
            everything or self.unchecked[0][0] + FETCH_BEHIND <= self.dispatched
        ):
            _, last, count, values = self.unchecked.popleft()
            finite = np.atleast_1d(np.asarray(values))[:count]
            steps += [last - count + 1 + i for i in np.flatnonzero(finite == 0).tolist()]
        return steps

    def flush(self) -> None:
        """Writes all pending metrics."""
        self.emit(len(self.pending))

    def emit(self, count: int) -> None:
        """Writes the oldest `count` of the pending metrics, which share one measured speed."""
        if not count:
            return
        logged = [self.pending.popleft() for _ in range(count)]
        rows = [
            (step, {f"train/{key}": float(value) for key, value in values.items()})
            for _, step, values in logged
        ]
        times, last_step = self.times(), logged[-1][1]
        seconds, stalled = times[0] - self.last_times[0], times[1] - self.last_times[1]
        seconds = max(seconds, 1e-9)
        speed = (last_step - self.last_step) * self.batch_size / seconds
        self.last_step, self.last_times = last_step, times
        for step, row in rows:
            row["train/images_per_second"] = speed
            row["train/input_stall_percent"] = 100 * stalled / seconds
            self.write(step, row)
            self.display.step(step, step / self.steps_per_epoch, row)

    def name_stragglers(self) -> None:
        """Names the processes that hold the others up; called in a pause, with idle devices."""
        if jax.process_count() == 1:
            return
        (trained, stalled), (trained_before, stalled_before) = self.times(), self.compared
        self.compared = trained, stalled
        ours = pace.pace((stalled - stalled_before) / max(trained - trained_before, 1e-9))
        paces = [pace.Pace(**values) for values in hosts.gather(dataclasses.asdict(ours))]
        for line in pace.stragglers(paces):
            self.display.say(line)

    def report(self, report: Report) -> None:
        """Logs an evaluation."""
        values = {
            f"eval/{key}": float(value)
            for key, value in dataclasses.asdict(report).items()
            if value is not None and key != "step"
        }
        self.write(report.step, values)
        self.display.say(
            f"step {report.step}/{self.steps}  evaluation: {report}  "
            f"loss {report.loss:.4f}  on {report.examples:,} examples"
        )

    def write(self, step: int, row: dict[str, float]) -> None:
        """Writes a row of metrics in the first process."""
        if self.writer:
            self.writer.write(step, step / self.steps_per_epoch, row)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Closes the files, and tells the loggers how the process ends."""
        if self.writer:
            stopped = kind is not None and issubclass(kind, Preempted)
            self.writer.close("stopped" if stopped else "failed" if kind else "finished")
