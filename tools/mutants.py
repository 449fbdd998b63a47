"""Checks that tests of resumes notice each missing part of the state.

    python -m tools.mutants [--json]

A run with every part that a state can have (momentum, statistics, moving averages, a loss scale) is
stopped in the middle and resumed: once as it should be, and once for each part, taken from a new
run in place of the checkpoint. A mutant is killed if the digest of the last state, which every test
of a resume compares, differs from that of the run that was never stopped.
"""

import contextlib
import dataclasses
import json
import pathlib
import signal
import tempfile
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

import flaxres
from benchmarks import command
from flaxres import Config
from flaxres.config.files import load_config
from flaxres.training import run, state as states
from flaxres.training.checkpoints import Checkpoints
from flaxres.training.signals import Preempted
from flaxres.training.state import State
from flaxres.training.stepper import Stepper
from tools.kill import digest

ROOT = pathlib.Path(__file__).parents[1]
STEPS, STOP = 8, 5


def config(data_dir: str) -> Config:
    """Returns the config of a short run whose state has every part."""
    base = load_config(str(ROOT / "configs" / "digits.py"))
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, dtype="float16", depths=(1, 1, 1)),
        data=dataclasses.replace(base.data, data_dir=data_dir, resident=False),
        augment=dataclasses.replace(base.augment, shift=1),
        optim=dataclasses.replace(base.optim, momentum=0.9, warmup_epochs=0, learning_rate=0.01),
        train=dataclasses.replace(
            base.train,
            batch_size=32,
            steps=STEPS,
            ema_decay=0.9,
            tensorboard=False,
            progress=False,
            eval_every_epochs=100,
            devices=1,
        ),
    )


@contextlib.contextmanager
def restored(change: Callable[[State, State], State]) -> Iterator[None]:
    """Makes restores return `change(checkpoint's state, new run's state)`."""
    real = Checkpoints.restore

    def altered(self: Checkpoints, like: State) -> State:
        return change(real(self, like), fresh[0])

    with mock.patch.object(Checkpoints, "restore", altered):
        yield


fresh: list[State] = []


def without(name: str) -> Callable[[], Any]:
    """Returns the mutant that takes one part of the state from a new run."""
    return lambda: restored(lambda saved, new: saved.replace(**{name: getattr(new, name)}))


def from_the_beginning() -> Any:
    """Restarts the input at its first sample."""
    real = run.feed
    return mock.patch("flaxres.training.loop.feed", lambda run_, first, say: real(run_, 0, say))


@contextlib.contextmanager
def other_key() -> Iterator[None]:
    """Random numbers of another seed, for augmentation and dropout."""
    real = states.purpose

    def purpose(seed: Any, number: int) -> Any:
        return real(seed + 1, number)

    with (
        mock.patch("flaxres.training.augmentation.purpose", purpose),
        mock.patch("flaxres.training.steps.purpose", purpose),
    ):
        yield


MUTANTS: dict[str, Callable[[], Any]] = {
    "step": without("step"),
    "data_index": from_the_beginning,
    "parameters": without("params"),
    "optimizer": without("opt_state"),
    "statistics": without("batch_stats"),
    "ema": without("ema"),
    "loss_scale": without("loss_scale"),
    "key": other_key,
}


@contextlib.contextmanager
def stopped() -> Iterator[None]:
    """Sends SIGTERM in the middle."""
    real = Stepper.__call__

    def stopping(self: Stepper, state: State, batch: Any, count: int) -> Any:
        if int(state.step) == STOP - 1:
            signal.raise_signal(signal.SIGTERM)
        return real(self, state, batch, count)

    with mock.patch.object(Stepper, "__call__", stopping):
        yield


@contextlib.contextmanager
def first_scale_too_high() -> Iterator[None]:
    """Lets the loss scale overflow at once, so that it differs from that of a new run."""
    with mock.patch("flaxres.training.state.FIRST_SCALE", 2.0**24):
        yield


def resumed(
    settings: Config, workdir: pathlib.Path, mutant: Callable[[], Any] = contextlib.nullcontext
) -> str:
    """Stops a run and resumes it with a mutant.

    Returns:
      The digest of the last state, or the error that ended the run.
    """
    with stopped(), contextlib.suppress(Preempted):
        flaxres.fit(settings, workdir)
    with mutant():
        try:
            flaxres.fit(settings, workdir)
        except (Exception, SystemExit) as error:
            return f"{type(error).__name__}"
    return digest(workdir)


def main() -> None:
    chosen = command.parser(__doc__).parse_args()
    killed = {}
    with tempfile.TemporaryDirectory() as folder, first_scale_too_high():
        base = pathlib.Path(folder)
        # All of these runs are one program.
        jax.config.update("jax_compilation_cache_dir", str(base / "compiled"))
        settings = config(str(base / "data"))
        fresh.append(run.prepare_run(settings).first_state())
        assert float(fresh[0].loss_scale["scale"]) == 2.0**24
        assert jnp.result_type(fresh[0].step) == jnp.int32
        flaxres.fit(settings, base / "whole")
        expected = digest(base / "whole")
        assert resumed(settings, base / "resumed") == expected, (
            "a resume without a mutant must be the run itself"
        )
        for name, mutant in MUTANTS.items():
            killed[name] = int(resumed(settings, base / name, mutant) != expected)
            if not chosen.json:
                print(f"{name}: {'killed' if killed[name] else 'NOT NOTICED'}", flush=True)
    figures = {"mutants": len(killed), "killed": sum(killed.values())} | killed
    print(
        json.dumps(figures)
        if chosen.json
        else f"{sum(killed.values())} of {len(killed)} mutants killed"
    )


if __name__ == "__main__":
    main()
