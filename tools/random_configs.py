"""Trains random valid configs on 1 and 8 devices, and gives invalid ones to the command line.

    python -m tools.random_configs valid --count 500 --seed 0
    python -m tools.random_configs invalid --count 500 --seed 0

`valid` draws configs over the declared settings, with tiny networks in float64. Each one trains two
steps and is evaluated on 1 and on 8 devices. Losses, parameters, statistics and averages must agree
within 1e-8. Configs that are refused are drawn again. `--replay JSON` runs one config, given by its
settings that differ from the default, and `--reduce` returns settings of a failure to the
default as long as it still fails.

Where an array differs by more, the config is trained on one device again, from parameters that are
rounded otherwise: each is the next larger or smaller number. If that moves the array by a tenth of
the difference or more, the config amplifies rounding, as an optimizer does that divides a gradient
near zero by its size. It is counted as sensitive, and printed with both figures.

`invalid` breaks one rule of the settings at a time, by an option or in a config file. The command
line must refuse each in one line and with exit code 2.
"""

import argparse
import collections
import contextlib
import dataclasses
import gc
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks import command, quick

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = quick.flags(level=0, devices=8)

import jax
import jax.numpy as jnp
import numpy as np

from flaxres import save_weights
from flaxres.config.check import check
from flaxres.config.schema import Config
from flaxres.errors import InputError
from flaxres.models.registry import create_model
from flaxres.training.evaluation import Evaluator
from flaxres.training.mesh import replicated
from flaxres.training.run import Run, feed, prepare_run
from flaxres.training.stepper import Stepper
from tools import broken
from tools.drawn import Values, changes, draw, of_values, tiny

STEPS, DEVICES, TOLERANCE, SENSITIVE = 2, (1, 8), 1e-8, 10
# The largest value of an array is taken to be at least this: an array that is zero but for
# rounding has no digits to agree in.
LEAST = 1e-7
CLASSES = 10
EVERY = 5

Figures = dict[str, Any]
"""The results of a config: `losses`, `evaluation`, and the arrays of its last state by path."""


class MismatchError(Exception):
    """A config whose results differ, or that is refused on some numbers of devices only."""


def run_of(config: Config, devices: int) -> Run:
    """Returns the run of a config on a number of devices.

    Raises:
      InputError: the config is refused.
    """
    train, data = dataclasses.replace(config.train, devices=devices), config.data
    run = prepare_run(dataclasses.replace(config, train=train))
    sides = [data.image_size, data.eval_size, *(side for _, side in data.progressive_sizes)]
    for side in sides:  # before anything is compiled
        run.model.check_sides(side)
    return run


def outcome(run: Run, first: Any) -> Figures:
    """Trains two steps from a state on the host, and evaluates the result."""
    state, stepper = jax.device_put(first, replicated(run.mesh)), Stepper(run)
    losses: list[float] = []
    step, last = 0, min(run.steps, STEPS)
    with feed(run, 0, print) as (batches, _):
        for batch in batches:
            if not stepper.prepared(batch):
                stepper.prepare(state, batch)
            count = min(run.dispatch_end(step), last) - step
            state, metrics = stepper(state, batch, count)
            losses += np.ravel(metrics["loss"])[:count].tolist()
            step += count
            if step == last:
                break
    variables = {"variables": state.variables, "ema": state.ema}
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(variables))
    arrays = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    return {"losses": losses, "evaluation": Evaluator(run, print)(state).loss} | arrays


def write_files(config: Config) -> None:
    """Writes the files of weights that a config names, with random weights."""
    optim, key = config.optim, jax.random.key(1)
    networks: dict[str, Any] = {}
    if optim.distill_weights and not pathlib.Path(optim.distill_weights).exists():
        teacher = create_model(str(optim.distill_model), num_classes=CLASSES)
        networks[optim.distill_weights] = teacher
    if config.model.weights:
        model = dataclasses.replace(config.model, weights=None)
        networks[config.model.weights] = prepare_run(dataclasses.replace(config, model=model)).model
    for path, network in networks.items():
        # Scales of zero would hide a branch.
        images = jnp.zeros((1, 32, 32, 3), network.dtype)
        variables = jax.jit(network.init)(key, images)
        lifted = jax.tree.map(lambda leaf: leaf + 0.1 * (leaf == 0), variables["params"])
        save_weights(path, {**variables, "params": lifted}, network)


def rounded_otherwise(state: Any) -> Any:
    """Returns a state whose parameters are each replaced by a neighbouring number."""
    rng = np.random.default_rng(0)

    def neighbours(leaf: np.ndarray) -> np.ndarray:
        return np.nextafter(leaf, rng.choice([-np.inf, np.inf], leaf.shape))

    return dataclasses.replace(state, params=jax.tree.map(neighbours, state.params))


def difference(ours: Any, theirs: Any) -> float:
    """Returns the largest difference as a share of the largest value, or of `LEAST` if larger.

    A value that is not finite must be the same in both.
    """
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if a.shape != b.shape or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return np.inf
    if not finite.any():
        return 0.0
    a, b = a[finite], b[finite]
    return float(np.abs(a - b).max() / max(np.abs(b).max(), LEAST))


class Verdict(NamedTuple):
    """The comparison of a config.

    Attributes:
      worst: the largest difference between 1 and 8 devices.
      failure: what differs, or the error; '' if there is none.
      sensitive: what differs as much by other rounding alone; '' if nothing does.
    """

    worst: float
    failure: str = ""
    sensitive: str = ""


def compare(config: Config) -> Verdict:
    """Compares the results on 1 and 8 devices.

    Raises:
      InputError: the config is refused.
      MismatchError: it is refused on 8 devices alone.
    """
    check(config)
    write_files(config)
    run = run_of(config, DEVICES[0])
    state = jax.device_get(run.first_state())
    first = outcome(run, state)
    try:
        other = outcome(run_of(config, DEVICES[1]), state)
    except InputError as error:
        raise MismatchError(f"refused on {DEVICES[1]} devices alone: {error}") from error
    differences = {name: difference(other[name], value) for name, value in first.items()}
    worst = max(differences.values())
    if worst <= TOLERANCE:
        return Verdict(worst)
    again = outcome(run_of(config, DEVICES[0]), rounded_otherwise(state))
    rounding = {name: difference(again[name], value) for name, value in first.items()}
    failures, sensitive = list[str](), list[str]()
    for name, far in sorted(differences.items(), key=lambda item: -item[1]):
        if far > TOLERANCE:
            words = f"{name} differs by {far:.1e}, and by {rounding[name]:.1e} by rounding"
            (sensitive if far <= SENSITIVE * rounding[name] else failures).append(words)
    return Verdict(worst, "; ".join(failures[:3]), "; ".join(sensitive[:3]))


@dataclasses.dataclass
class Tally:
    """The results of many configs."""

    refusals: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    drawn: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    passed: int = 0
    sensitive: int = 0
    worst: float = 0.0
    failures: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def verdict(config: Config) -> Verdict:
    """Compares the results of a config; an error other than InputError is a failure.

    Raises:
      InputError: the config is refused.
    """
    try:
        return compare(config)
    except InputError:
        raise
    except Exception as error:
        return Verdict(0.0, f"{type(error).__name__}: {error}"[:2000])
    finally:
        jax.clear_caches()
        gc.collect()


def reduced(config: Config, base: Config) -> Config:
    """Returns settings to those of `base` as long as the config still fails."""
    values = changes(config)
    for name in changes(config, base):
        fewer = {key: value for key, value in values.items() if key != name}
        fewer |= {key: value for key, value in changes(base).items() if key == name}
        with contextlib.suppress(InputError):
            if verdict(of_values(fewer)).failure:
                values = fewer
    return of_values(values)


def configs(seed: int, number: int, data_dir: str, tally: Tally) -> Iterator[Config]:
    """Yields configs that pass `check`, drawn for config number `number` of a seed."""
    rng = np.random.default_rng([seed, number])
    while True:
        config = draw(rng, data_dir)
        try:
            check(config)
        except InputError:
            tally.refusals["by the checks of settings"] += 1
            continue
        yield config


def judge(tally: Tally, chosen: argparse.Namespace, number: int, data_dir: str) -> None:
    """Draws config number `number` until one is not refused, and compares it."""
    for config in configs(chosen.seed, number, data_dir, tally):
        try:
            result = verdict(config)
        except InputError as error:
            tally.refusals["by the network or the data"] += 1
            if chosen.verbose:
                print(f"{number}: refused: {error}", flush=True)
            continue
        break
    base = of_values(tiny(data_dir))
    tally.drawn.update(list(changes(config, base)))
    if not result.failure and not result.sensitive:
        tally.passed += 1
        tally.worst = max(tally.worst, result.worst)
        return
    if not result.failure:
        tally.sensitive += 1
        print(f"config {number} of seed {chosen.seed} is sensitive: {result.sensitive}")
        print(json.dumps(changes(config)), flush=True)
        return
    if chosen.reduce:
        config = reduced(config, base)
    settings = changes(config)
    tally.failures.append({"seed": chosen.seed, "number": number, "settings": settings})
    print(f"config {number} of seed {chosen.seed} fails: {result.failure}")
    print(json.dumps(settings), flush=True)


def valid(chosen: argparse.Namespace) -> Figures:
    """Compares many random configs."""
    jax.config.update("jax_enable_x64", True)
    tally, start = Tally(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if chosen.replay:
            config = of_values(placed(json.loads(chosen.replay), folder))
            return verdict(config)._asdict()
        for number in range(chosen.first, chosen.first + chosen.count):
            judge(tally, chosen, number, folder)
            done = number - chosen.first + 1
            if not done % EVERY and not chosen.json:
                seconds = (time.monotonic() - start) / done
                print(
                    f"{done} configs, {seconds:.1f} s each: {len(tally.failures)} failures, "
                    f"largest difference {tally.worst:.1e}",
                    flush=True,
                )
    rarest = min(tally.drawn, key=lambda name: tally.drawn[name], default="")
    return {
        "configs": chosen.count,
        "passed": tally.passed,
        "sensitive": tally.sensitive,
        "failures": len(tally.failures),
        "largest_difference": tally.worst,
        "refused": dict(tally.refusals),
        "settings_drawn": len(tally.drawn),
        "rarest_setting": f"{rarest}, {tally.drawn[rarest]} times",
    }


def placed(settings: Values, folder: str) -> Values:
    """Returns the settings of parsed JSON with their files in `folder`."""
    paths = {
        name: f"{folder}/{pathlib.Path(settings[name]).name}"
        for name in ("model.weights", "optim.distill_weights")
        if settings.get(name)
    }
    return settings | paths | {"data.data_dir": folder}


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("what", choices=("valid", "invalid"))
    parser.add_argument("--count", type=int, default=100, help="number of configs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first config")
    parser.add_argument("--reduce", action="store_true", help="reduce the configs that fail")
    parser.add_argument("--replay", metavar="JSON", help="compare this config alone")
    parser.add_argument("--verbose", action="store_true", help="print the refusals of networks")
    chosen = parser.parse_args()
    figures = valid(chosen) if chosen.what == "valid" else broken.invalid(chosen)
    if chosen.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name}: {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
