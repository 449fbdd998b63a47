"""Trains a few hundred steps at rising learning rates, to see which ones a config bears."""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from flaxres import figures
from flaxres.config.files import resolved
from flaxres.config.schema import Config
from flaxres.errors import InputError
from flaxres.training.run import Run, feed, prepare_run
from flaxres.training.stepper import Stepper

SMOOTHING, DIVERGED = 0.95, 4.0
FEWEST = 20


@dataclasses.dataclass(frozen=True)
class Found:
    """The result of a range test.

    Attributes:
      rates: learning rates of the steps, ascending.
      losses: the loss of each step.
      smooth: their exponential moving average, without its bias towards the start.
    """

    rates: Float[np.ndarray, " steps"]
    losses: Float[np.ndarray, " steps"]
    smooth: Float[np.ndarray, " steps"]

    @property
    def lowest(self) -> float:
        """The rate at the lowest smooth loss. A tenth of it is a usual choice."""
        return float(self.rates[self.smooth.argmin()])

    @property
    def steepest(self) -> float:
        """The rate below `lowest` at which the smooth loss falls the most."""
        upto = max(int(self.smooth.argmin()), 1)
        falls = np.gradient(self.smooth, np.log(self.rates))[: upto + 1]
        return float(self.rates[falls.argmin()])


@dataclasses.dataclass(frozen=True)
class _Rising(Run):
    """A run whose learning rate rises by the same factor in each step."""

    low: float = 0.0
    high: float = 0.0

    @functools.cached_property
    def schedule(self) -> optax.Schedule:
        """The learning rate by step, from `low` to `high`."""
        growth = math.log(self.high / self.low) / (self.steps - 1)
        return lambda step: self.low * jnp.exp(growth * jnp.asarray(step, float))


def range_test(config: Config, steps: int = 200, low: float = 1e-5, high: float = 10.0) -> Found:
    """Trains at rising learning rates (Smith 2017, section 3.3), and saves nothing.

    The rate rises by the same factor in each step, in place of the schedule of the config. The test
    ends early where the smooth loss is four times the lowest one, or a loss is not finite.

    Args:
      config: the settings; those of the schedule have no effect.
      steps: number of steps.
      low, high: first and last learning rate.

    Raises:
      InputError: the config could not train, the rates don't rise, or there are too few steps.
    """
    if not 0 < low < high:
        raise InputError(f"learning rates from {low:g} to {high:g}: the rule is 0 < from < to")
    if steps < FEWEST:
        raise InputError(f"--steps={steps}: the rule is >= {FEWEST}, to see a course of the loss")
    config = resolved(config)
    optim = dataclasses.replace(config.optim, warmup_epochs=0.0, warmup_steps=None)
    train = dataclasses.replace(config.train, steps=steps, steps_per_dispatch=1, non_finite="skip")
    opened = prepare_run(dataclasses.replace(config, optim=optim, train=train))
    run = _Rising(opened.config, opened.train, opened.evaluation, low=low, high=high)
    losses = _losses(run)
    if len(losses) < 2:
        raise InputError(
            f"the loss at the learning rate {low:g} is not finite: start lower with --from"
        )
    rates = np.asarray(jax.vmap(run.schedule)(np.arange(len(losses))), np.float64)
    return Found(rates, losses, smoothed(losses))


def _losses(run: Run) -> Float[np.ndarray, " steps"]:
    """Trains, and returns the losses up to the first that is not finite or has diverged."""
    stepper, state, losses = Stepper(run), run.first_state(), list[float]()
    with feed(run, 0, print) as (batches, _):
        for batch in itertools.islice(batches, run.steps):
            if not stepper.prepared(batch):
                stepper.prepare(state, batch)
            state, metrics = stepper(state, batch, 1)
            loss = float(metrics["loss"])
            if not math.isfinite(loss):
                break
            losses.append(loss)
            smooth = smoothed(np.asarray(losses))
            if smooth[-1] > DIVERGED * smooth.min():
                break
    return np.asarray(losses)


def smoothed(losses: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
    """Returns the exponential moving average, divided by the sum of its weights.

    Examples:
      >>> smoothed(np.array([3.0, 3.0])).round(6).tolist()
      [3.0, 3.0]
    """
    average, result = 0.0, []
    for count, loss in enumerate(losses, 1):
        average = SMOOTHING * average + (1 - SMOOTHING) * float(loss)
        result.append(average / (1 - SMOOTHING**count))
    return np.asarray(result)


def draw(found: Found, config: Config, target: str) -> None:
    """Draws the losses over the learning rate.

    Raises:
      InputError: the file can't be written.
    """
    plt: Any = figures.pyplot()
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    axes.semilogx(found.rates, found.losses, color="0.75", linewidth=0.8, label="loss of a step")
    axes.semilogx(found.rates, found.smooth, color="#0072b2", label="smooth loss")
    for rate, colour, name in (
        (found.steepest, "#009e73", "steepest fall"),
        (found.lowest / 10, "#d55e00", "a tenth of the lowest"),
    ):
        axes.axvline(rate, color=colour, linestyle="--", label=f"{name}: {rate:.2g}")
    axes.set(xlabel="learning rate", ylabel="training loss", ylim=(None, 1.1 * found.smooth.max()))
    axes.set_title(
        f"{config.model.name} on {config.data.name}: {config.optim.name}, batches of "
        f"{config.train.batch_size:,}"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figures.save(figure, target, "--out")
