"""Training with real input against training without any: `python -m benchmarks.end_to_end [--json]`.

ResNet-18 at 64 pixels, batch 64, on ImageNet photographs: full-size JPEGs, and after `flaxres data shrink` to a short side of 80 pixels. The same
compiled step is fed by the loader, and by one batch that stays on the device; measured in turn, median of pairs. Also prints what the loader gives
alone, and how long the step waits for it. On a CPU loader and step share the cores, so that decoding costs the step its own share of them, even
where the step never waits.

`fraction_of_step_rate`, `input_stall_percent`: of the shrunk photographs; `full_...`: of the full-size ones.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax

from benchmarks.input import photographs
from flaxres import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from flaxres.data.prepare import shrink
from flaxres.data.sources import open_source, open_splits
from flaxres.training.run import Run, feed

BATCH, SIZE = 64, 64


class Trainer:
    """A compiled step with its state; `measure` runs it on some batches."""

    def __init__(self, run: Run, batch: Any) -> None:
        self.state: Any = run.first_state()
        self.step = run.train_step().lower(self.state, batch).compile()

    def measure(self, batches: Any, steps: int) -> float:
        """Steps a second, after two that are not counted."""
        start = 0.0
        for i, batch in zip(range(steps + 2), batches, strict=False):
            self.state, values = self.step(self.state, batch)
            float(values["loss"])  # as the log does, now and then; here after each, so that both sides wait alike
            if i == 1:
                start = time.perf_counter()
        return steps / (time.perf_counter() - start)


def compare(run: Run, pairs: int, steps: int) -> dict[str, float]:
    with feed(run, 0, print) as (batches, _):
        first = next(batches)
    trainer = Trainer(run, first)
    fractions, stalls, alone, rates = [], [], [], []
    for _ in range(pairs):
        synthetic = trainer.measure(iter([first] * (steps + 2)), steps)
        with feed(run, 0, print) as (batches, loader):
            assert loader is not None
            for _ in range(2):
                next(batches)
            stalled, start = loader.stall_seconds, time.perf_counter()
            real = trainer.measure(batches, steps)
            stalls.append(100 * (loader.stall_seconds - stalled) / (time.perf_counter() - start))
        with feed(run, 0, print) as (batches, _):
            for _ in range(8):
                next(batches)
            start = time.perf_counter()
            for _ in range(4 * steps):
                jax.block_until_ready(next(batches)["image"])
            alone.append(4 * steps * BATCH / (time.perf_counter() - start))
        fractions.append(real / synthetic)
        rates.append(synthetic * BATCH)
    return {
        "fraction_of_step_rate": statistics.median(fractions),
        "input_stall_percent": statistics.median(stalls),
        "step_images_per_second": statistics.median(rates),
        "loader_images_per_second": statistics.median(alone),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--short-side", type=int, default=80)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = str(photographs(pathlib.Path(folder)).parents[1])
        full = open_source("folder", "train", root, folder)
        name, _, _ = shrink({"train": full}, chosen.short_side, 90, folder)
        (small,) = open_splits(name, ["train"], None, folder)
        config = Config(
            ModelConfig("resnet18"),
            DataConfig("folder", root, folder, image_size=SIZE, eval_size=SIZE, eval_resize=SIZE),
            optim=OptimConfig(learning_rate=0.01),
            train=TrainConfig(BATCH, BATCH, steps=100_000, devices=1),
        )
        figures = compare(Run(config, small, small), chosen.pairs, chosen.steps)
        figures |= {
            f"full_{name}": value for name, value in compare(Run(config, full, full), chosen.pairs, chosen.steps).items() if name[:4] != "step"
        }
    print(json.dumps(figures) if chosen.json else "\n".join(f"{name}: {value:,.3f}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
