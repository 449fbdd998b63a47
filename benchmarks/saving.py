"""What trustworthy checkpoints cost: `python -m benchmarks.saving [--steps 60] [--json]`.

Trains the network and the batch of configs/cifar10/quick.py (on digits of 32 pixels, since only shapes matter) with a save in every 20th step, which
is far more often than any recipe saves, and prints

  step_seconds            a step's time
  save_blocks_seconds     the median of how long a save holds the loop up, and `save_blocks_steps`, the same in steps
  digest_seconds          of the digests and the seal of a save, which run beside the steps
  watchdog_microseconds   of the watchdog in a step
  cost_percent            digests and watchdog together, of the time trained, if one core did nothing else meanwhile; `cost_percent_of_recipe` with
                          the recipe's own saves
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import flaxres
from flaxres.cli._process import keep_memory
from flaxres.config.files import load_config
from flaxres.training.checkpoints import Checkpoints
from flaxres.training.stepper import Stepper
from flaxres.training.watchdog import Watchdog

ROOT = pathlib.Path(__file__).parents[1]
EVERY, CIFAR = 20, 50_000


@contextlib.contextmanager
def timed(owner: type, name: str, seconds: list[float]) -> Iterator[None]:
    """Notes how long each call of a method takes."""
    real = getattr(owner, name)

    def clocked(*arguments: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        try:
            return real(*arguments, **options)
        finally:
            seconds.append(time.perf_counter() - begun)

    with mock.patch.object(owner, name, clocked):
        yield


def measure(steps: int) -> dict[str, float]:
    recipe = load_config(str(ROOT / "configs" / "cifar10" / "quick.py"))
    with tempfile.TemporaryDirectory() as folder:
        images = (
            1297  # of the digits' training split, so that an epoch is not a whole number of steps
        )
        epochs = EVERY * recipe.train.batch_size / images
        config = dataclasses.replace(
            recipe,
            data=dataclasses.replace(recipe.data, name="digits", data_dir=f"{folder}/data"),
            train=dataclasses.replace(
                recipe.train,
                steps=steps,
                log_every_steps=1,
                eval_every_epochs=1e6,
                checkpoint_every_epochs=epochs,
                tensorboard=False,
            ),
        )
        times: dict[str, list[float]] = collections.defaultdict(list)
        with contextlib.ExitStack() as stack:
            for owner, name in ((Checkpoints, "save"), (Checkpoints, "digest"), (Watchdog, "at")):
                stack.enter_context(timed(owner, name, times[name]))
            stack.enter_context(timed(Stepper, "__call__", times["dispatch"]))
            flaxres.fit(config, f"{folder}/run")
        summary = json.loads(pathlib.Path(folder, "run", "summary.json").read_text())
    step = summary["seconds"] / steps
    saves = len(times["save"])
    digest, watchdog = statistics.median(times["digest"]), sum(times["at"]) / steps
    blocks = statistics.median(times["save"])
    per_save = recipe.train.checkpoint_every_epochs * CIFAR / recipe.train.batch_size
    return {
        "step_seconds": step,
        "saves": saves,
        "save_blocks_seconds": blocks,
        "save_blocks_steps": blocks / step,
        "digest_seconds": digest,
        "watchdog_microseconds": 1e6 * watchdog,
        "cost_percent": 100 * (digest / EVERY + watchdog) / step,
        "cost_percent_of_recipe": 100 * (digest / per_save + watchdog) / step,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    keep_memory()
    figures = measure(chosen.steps)
    print(
        json.dumps(figures)
        if chosen.json
        else "\n".join(f"{name}: {value:.4g}" for name, value in figures.items())
    )


if __name__ == "__main__":
    main()
