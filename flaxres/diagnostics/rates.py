"""Measures the throughput of a config's step, of its input, and of both together."""

import dataclasses
import statistics
import time
from collections.abc import Iterable
from typing import Any

import jax

from flaxres.config.files import resolved
from flaxres.config.schema import Config
from flaxres.training.run import Run, feed, prepare_run
from flaxres.training.stepper import Stepper


class Trainer:
    """A compiled step with its state, to be timed."""

    def __init__(self, run: Run, batch: Any) -> None:
        self.stepper, self.state = Stepper(run), run.first_state()
        self.stepper.prepare(self.state, batch)

    def measure(self, batches: Iterable[Any], steps: int) -> float:
        """Returns the steps per second, after two that do not count."""
        start = 0.0
        for i, batch in zip(range(steps + 2), batches, strict=False):
            self.state, values = self.stepper(self.state, batch, 1)
            # The log waits now and then. Here each step does, so that both sides wait alike.
            jax.block_until_ready(values)
            if i == 1:
                start = time.perf_counter()
        return steps / (time.perf_counter() - start)


def rates(config: Config, steps: int = 20, pairs: int = 3) -> dict[str, float]:
    """Measures the throughput of a config; see `rates_of`."""
    config = resolved(config)
    # Long enough never to end while it is measured.
    most = min(1_000_000, (2**32 - 1) // config.train.batch_size)
    train = dataclasses.replace(config.train, steps=most, epochs=1.0)
    return rates_of(prepare_run(dataclasses.replace(config, train=train)), pairs, steps)


def rates_of(run: Run, pairs: int, steps: int) -> dict[str, float]:
    """Measures the step on one batch that stays, the input by itself, and both together, in turn.

    Args:
      run: the run.
      pairs: number of measurements.
      steps: steps of a measurement.

    Returns:
      Medians: `fraction_of_step_rate`, both together over the step alone; `input_stall_percent`;
      and images per second of the step (`step_images_per_second`), of both (`images_per_second`)
      and of the input (`loader_images_per_second`, infinite for a resident dataset).
    """
    images = run.config.train.batch_size
    with feed(run, 0, print) as (batches, _):
        first = next(batches)
    trainer = Trainer(run, first)
    values: dict[str, list[float]] = {}
    for _ in range(pairs):
        synthetic = trainer.measure([first] * (steps + 2), steps)
        real, stall = _measure_with_input(run, trainer, steps)
        measured = {
            "fraction_of_step_rate": real / synthetic,
            "input_stall_percent": stall,
            "step_images_per_second": synthetic * images,
            "images_per_second": real * images,
            "loader_images_per_second": loader_rate(run, 4 * steps),
        }
        for name, value in measured.items():
            values.setdefault(name, []).append(value)
    return {name: statistics.median(several) for name, several in values.items()}


def _measure_with_input(run: Run, trainer: Trainer, steps: int) -> tuple[float, float]:
    """Returns the steps per second with the run's input, and the percentage of time it stalls."""
    with feed(run, 0, print) as (batches, loader):
        for _ in range(2):
            next(batches)
        before, start = loader.stall_seconds if loader else 0.0, time.perf_counter()
        rate = trainer.measure(batches, steps)
        stalled = (loader.stall_seconds if loader else 0.0) - before
        return rate, 100 * stalled / (time.perf_counter() - start)


def loader_rate(run: Run, batches: int) -> float:
    """Returns the images per second of the input alone, after eight batches that do not count."""
    if run.config.data.resident:
        return float("inf")
    with feed(run, 0, print) as (ready, _):
        for _ in range(8):
            next(ready)
        start = time.perf_counter()
        for _ in range(batches):
            jax.block_until_ready(next(ready)["image"])
        return batches * run.config.train.batch_size / (time.perf_counter() - start)
