"""Measures the throughput of a config's step, of its input, and of both together."""

import dataclasses
import statistics
import time
from typing import Any

import jax

from flaxres.config.files import resolved
from flaxres.config.schema import Config
from flaxres.training.loop import Stepper
from flaxres.training.run import Run, feed, prepare_run


class Trainer:
    """A compiled step with its state; `measure` runs it on some batches."""

    def __init__(self, run: Run, batch: Any) -> None:
        self.stepper, self.state = Stepper(run), run.first_state()
        self.stepper.prepare(self.state, batch)

    def measure(self, batches: Any, steps: int) -> float:
        """Steps a second, after two that are not counted."""
        start = 0.0
        for i, batch in zip(range(steps + 2), batches, strict=False):
            self.state, values = self.stepper(self.state, batch, 1)
            jax.block_until_ready(
                values
            )  # as the log does, now and then; here after each, so that both sides wait alike
            if i == 1:
                start = time.perf_counter()
        return steps / (time.perf_counter() - start)


def rates(config: Config, steps: int = 20, pairs: int = 3) -> dict[str, float]:
    """Images a second of the step on one batch that stays, of the input alone, and of both together; see `rates_of`."""
    config = resolved(config)
    never_ends = dataclasses.replace(
        config.train, steps=min(1_000_000, (2**32 - 1) // config.train.batch_size), epochs=1.0
    )
    return rates_of(prepare_run(dataclasses.replace(config, train=never_ends)), pairs, steps)


def rates_of(run: Run, pairs: int, steps: int) -> dict[str, float]:
    """Medians of `pairs` measurements, in turn: `fraction_of_step_rate` of both together over the step alone, `input_stall_percent`, and images/s of
    the step (`step_images_per_second`) and of the input (`loader_images_per_second`; infinite where the data are on the device).
    """
    images = run.config.train.batch_size
    with feed(run, 0, print) as (batches, _):
        first = next(batches)
    trainer = Trainer(run, first)
    found: dict[str, list[float]] = {}
    for _ in range(pairs):
        synthetic = trainer.measure(iter([first] * (steps + 2)), steps)
        with feed(run, 0, print) as (batches, loader):
            for _ in range(2):
                next(batches)
            stalled, start = loader.stall_seconds if loader else 0.0, time.perf_counter()
            real = trainer.measure(batches, steps)
            stall = (
                100
                * ((loader.stall_seconds if loader else 0.0) - stalled)
                / (time.perf_counter() - start)
            )
        alone = loader_rate(run, 4 * steps) if loader else float("inf")
        figures_ = (real / synthetic, stall, synthetic * images, real * images, alone)
        names = (
            "fraction_of_step_rate",
            "input_stall_percent",
            "step_images_per_second",
            "images_per_second",
            "loader_images_per_second",
        )
        for name, value in zip(names, figures_, strict=True):
            found.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in found.items()}


def loader_rate(run: Run, batches: int) -> float:
    """Images a second of the input alone, after eight batches that are not counted."""
    with feed(run, 0, print) as (ready, _):
        for _ in range(8):
            next(ready)
        start = time.perf_counter()
        for _ in range(batches):
            jax.block_until_ready(next(ready)["image"])
        return batches * run.config.train.batch_size / (time.perf_counter() - start)
