"""The log of a run: which metrics are read when, and the clock of training."""

import collections
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from flaxres.data.loader import Loader
from flaxres.training import hosts, metrics, pace
from flaxres.training.evaluation import Report
from flaxres.training.run import Run

FETCH_BEHIND = 2


class Log:
    """Metrics on their way out. Those of a step are read two dispatches later, or before a pause, so that the device never waits for the host.

    Times leave evaluations and saves out, and include what earlier processes of the run spent (`before`: seconds trained, seconds stalled).
    """

    def __init__(
        self,
        run: Run,
        folder: pathlib.Path,
        first: int,
        before: tuple[float, float],
        display: metrics.Display,
        loader: Loader | None,
    ) -> None:
        self.run, self.display, self.loader, self.before = run, display, loader, before
        self.writer = (
            metrics.Writer(folder, first, run.config.train.tensorboard, run.config.train.wandb)
            if hosts.leader()
            else None
        )
        self.pending: collections.deque[tuple[int, int, Any]] = collections.deque()
        self.dispatched = 0
        self.unchecked: collections.deque[tuple[int, int, int, Any]] = collections.deque()
        self.last_step, self.last_times = first, (0.0, 0.0)
        self.compared = (0.0, 0.0)
        self.start()

    def start(self) -> None:
        """Sets the clock of training to zero: called once the step is compiled and the first batch is there."""
        self.trained, self.running, self.since = 0.0, True, time.perf_counter()
        self.waited_before = self.loader.stall_seconds if self.loader else 0.0

    @contextlib.contextmanager
    def paused(self, state: Any) -> Iterator[None]:
        """Stops the clock of training once `state` is computed, with everything logged that was pending."""
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
        """Seconds that this process has trained, and of these, waited for input."""
        trained = self.trained + (time.perf_counter() - self.since if self.running else 0.0)
        return trained, self.loader.stall_seconds - self.waited_before if self.loader else 0.0

    def all_times(self) -> tuple[float, float]:
        trained, stalled = self.times()
        return self.before[0] + trained, self.before[1] + stalled

    def add(self, last: int, count: int, values: Any) -> None:
        """Takes note of a dispatch of the `count` steps up to `last`, and logs each `log_every_steps`-th of them and the run's last.

        `values`: metrics, scalars or, of several steps, arrays.
        """
        self.dispatched += 1
        for i, step in enumerate(range(last - count + 1, last + 1)):
            if step % self.run.config.train.log_every_steps == 0 or step == self.run.steps:
                self.pending.append(
                    (
                        self.dispatched,
                        step,
                        jax.tree.map(lambda value, i=i: value[i] if value.ndim else value, values),
                    )
                )
        self.emit(
            sum(dispatch + FETCH_BEHIND <= self.dispatched for dispatch, _, _ in self.pending)
        )

        self.unchecked.append((self.dispatched, last, count, values["finite"]))

    def non_finite(self, everything: bool) -> list[int]:
        """The steps whose loss or gradient was not finite and which have not been told before; `everything` waits for those under way."""
        bad = []
        while self.unchecked and (
            everything or self.unchecked[0][0] + FETCH_BEHIND <= self.dispatched
        ):
            _, last, count, finite = self.unchecked.popleft()
            bad += [
                last - count + 1 + i
                for i in np.flatnonzero(np.atleast_1d(np.asarray(finite))[:count] == 0).tolist()
            ]
        return bad

    def flush(self) -> None:
        self.emit(len(self.pending))

    def emit(self, count: int) -> None:
        """Writes the oldest `count` of the pending metrics, which share one measurement of the speed."""
        if not count:
            return
        logged = [self.pending.popleft() for _ in range(count)]
        rows = [
            (step, {f"train/{key}": float(value) for key, value in values.items()})
            for _, step, values in logged
        ]
        times, last_step = self.times(), logged[-1][1]
        seconds, stalled = times[0] - self.last_times[0], times[1] - self.last_times[1]
        speed = (last_step - self.last_step) * self.run.config.train.batch_size / max(seconds, 1e-9)
        self.last_step, self.last_times = last_step, times
        for step, row in rows:
            row["train/images_per_second"] = speed
            row["train/input_stall_percent"] = 100 * stalled / max(seconds, 1e-9)
            self.write(step, row)
            self.display.step(step, step / self.run.steps_per_epoch, row)

    def name_stragglers(self) -> None:
        """Says which of several processes hold the others up. Called in a pause, when the devices are idle."""
        if jax.process_count() == 1:
            return
        (trained, stalled), (trained_before, stalled_before) = self.times(), self.compared
        self.compared = trained, stalled
        own = pace.pace((stalled - stalled_before) / max(trained - trained_before, 1e-9))
        for line in pace.stragglers(
            [pace.Pace(**values) for values in hosts.gather(dataclasses.asdict(own))]
        ):
            self.display.say(line)

    def report(self, report: Report) -> None:
        values = {
            key: float(value)
            for key, value in dataclasses.asdict(report).items()
            if value is not None and key != "step"
        }
        self.write(report.step, {f"eval/{key}": value for key, value in values.items()})
        self.display.say(
            f"step {report.step}/{self.run.steps}  evaluation: top-1 {100 * report.top1:.2f}%  loss {report.loss:.4f}  "
            f"on {report.examples:,} examples"
        )

    def write(self, step: int, row: dict[str, float]) -> None:
        if self.writer:
            self.writer.write(step, step / self.run.steps_per_epoch, row)

    def close(self) -> None:
        if self.writer:
            self.writer.close()
