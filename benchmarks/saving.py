"""Cost of digests and seals of checkpoints: `python -m benchmarks.saving [--steps 60] [--json]`.

Trains the network of configs/cifar10/quick.py with its batch, on digits of 32 pixels, since only
shapes matter. It saves in every 20th step, far more often than any recipe, and prints:

  step_seconds            time of a step
  save_blocks_seconds     median time for which a save blocks the loop; `save_blocks_steps` in steps
  digest_seconds          time of the digests and the seal of a save, which run beside the steps
  watchdog_microseconds   time of the watchdog in a step
  cost_percent            share of digests and watchdog in the training time, if one core did
                          nothing else meanwhile; `cost_percent_of_recipe` for the recipe's saves
"""

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
from benchmarks import command
from flaxres.cli._process import dispatch_inline, keep_memory
from flaxres.config.files import load_config
from flaxres.training.checkpoints import Checkpoints
from flaxres.training.stepper import Stepper
from flaxres.training.watchdog import Watchdog

ROOT = pathlib.Path(__file__).parents[1]
EVERY, CIFAR = 20, 50_000


@contextlib.contextmanager
def timed(owner: type, name: str, seconds: list[float]) -> Iterator[None]:
    """Appends the time of each call of a method to `seconds`."""
    real = getattr(owner, name)

    def clocked(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return real(*arguments, **options)
        finally:
            seconds.append(time.perf_counter() - start)

    with mock.patch.object(owner, name, clocked):
        yield


def measure(steps: int) -> dict[str, float]:
    """Trains for so many steps and returns the figures."""
    recipe = load_config(str(ROOT / "configs" / "cifar10" / "quick.py"))
    with tempfile.TemporaryDirectory() as folder:
        images = 1297  # the digits' training split: an epoch is no whole number of steps
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
    parser = command.parser(__doc__)
    parser.add_argument("--steps", type=int, default=60)
    chosen = parser.parse_args()
    keep_memory()
    dispatch_inline()
    figures = measure(chosen.steps)
    command.show(figures, chosen.json, ".4g")


if __name__ == "__main__":
    main()
