"""`fit` and `evaluate`: everything around the two steps."""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxres.config.check import check, check_devices
from flaxres.config.files import from_json, resolved, to_json
from flaxres.config.schema import Config, differences
from flaxres.data.loader import note
from flaxres.data.order import step_positions, training_ids
from flaxres.errors import InputError
from flaxres.training import hosts, metrics
from flaxres.training.checkpoints import Checkpoints
from flaxres.training.evaluation import Evaluator, Report
from flaxres.training.log import Log
from flaxres.training.provenance import provenance
from flaxres.training.run import Run, feed, prepare_run
from flaxres.training.state import State
from flaxres.training.steps import steps_per_dispatch
from flaxres.training.watchdog import Watchdog
from flaxres.weights.transfer import load_weights


class Preempted(SystemExit):
    """SIGTERM or SIGINT came, and the state was saved: exit code 75, start the same command again."""

    def __init__(self, step: int) -> None:
        super().__init__(75)
        self.step = step


def fit(config: Config, workdir: str | os.PathLike[str]) -> State:
    """Trains `config` in `workdir`, going on from the newest checkpoint there, and returns the final state.

    Writes config.json, metrics.jsonl, summary.json, curves.png, TensorBoard events and checkpoints/. A run that was killed and started again ends
    in the same bits as one that was not.

    Raises InputError for input that could not train, before anything is compiled; Preempted (a SystemExit with code 75) after SIGTERM or
    SIGINT, once the state is saved; NonFiniteError for a loss or gradient that is no finite number, once the state before it is saved.
    """
    folder = pathlib.Path(workdir)
    check(config)
    config = resolved(config)
    run = hosts.together(lambda: ready(config, folder))
    origin = provenance(run)
    hosts.require_same(hosts.facts(config, origin))
    if hosts.leader():
        metrics.replace_file(folder / "config.json", to_json(config))
    hosts.wait_for_all("workdir is written to")
    if not all(hosts.gather((folder / "config.json").exists())):
        raise InputError(
            f"workdir {str(folder)!r} is not the same folder for all processes: it must be on a file system that all of them see"
        )
    notes: list[str] = []
    with (
        stop_signals() as asked,
        Checkpoints(
            folder / "checkpoints",
            config.train.keep_checkpoints,
            config.train.keep_best,
            True,
            notes.append,
        ) as checkpoints,
    ):
        state, origin = begin(run, checkpoints, origin, notes.append)
        first = int(state.step)
        with metrics.Display(run.steps, first, hosts.leader(), config.train.progress) as display:
            for line in [*notes, headline(run, first)]:
                display.say(line)
            if first >= run.steps:
                display.say(
                    f"step {first:,} was the last one: this run is finished; to train longer, give more epochs and another workdir"
                )
                if not hosts.gather((folder / metrics.SUMMARY).exists())[0]:
                    finish(
                        run,
                        Evaluator(run, display.say)(state),
                        tuple(origin["seconds"]),
                        folder,
                        display,
                        origin,
                    )
                return state
            return train(run, state, checkpoints, origin, display, folder, asked)


def ready(config: Config, folder: pathlib.Path) -> Run:
    """The run, with nothing compiled yet, and a workdir that can be written to; raises InputError for what could not train."""
    check_devices(config, jax.device_count())
    if hosts.leader():
        metrics.require_writable(folder)
    require_same_run(config, folder)
    run = prepare_run(config)
    folder.mkdir(parents=True, exist_ok=True)
    return run


def require_same_run(config: Config, folder: pathlib.Path, measuring: bool = False) -> None:
    """Refuses another config for a workdir that has checkpoints.

    With `measuring`, settings that only say how the model is measured may differ.
    """
    if not any((folder / "checkpoints").glob("[0-9]*")) or not (folder / "config.json").exists():
        return
    if changed := differences(from_json(folder / "config.json"), config, measuring):
        raise InputError(
            f"workdir {str(folder)!r} has a run with another config ({'; '.join(changed)}): use another --workdir, or that config"
        )


def begin(
    run: Run, checkpoints: Checkpoints, origin: dict[str, Any], say: Callable[[str], None]
) -> tuple[State, dict[str, Any]]:
    """The newest sound state in the workdir, or a new one, and the provenance that its checkpoints carry: `origin`, with what grows."""
    if checkpoints.step is None:
        return run.first_state(), origin
    saved = checkpoints.provenance()
    require_same_classes(run, saved)
    if saved["data"] != run.train.digest:
        raise InputError(
            f"dataset {run.train.name} has digest {run.train.digest[:12]}, the run's checkpoint was trained on {saved['data'][:12]}: "
            "give the same images, or another workdir"
        )
    if (before := saved.get("convolutions", "XLA")) != origin["convolutions"]:
        say(
            f"the run's convolutions were {before}'s and are now {origin['convolutions']}'s: other bits than those of a run without a stop"
        )
    return checkpoints.restore(run.abstract_state()), origin | {
        name: saved[name] for name in ("seconds", "left_out", "skipped")
    }


def require_same_classes(run: Run, saved: dict[str, Any]) -> None:
    """Class numbers mean nothing without their names, so a dataset with others is refused."""
    if saved["classes"] != run.train.class_digest:
        raise InputError(
            f"the {len(run.train.classes)} classes of {run.train.name} are not those that the checkpoint was trained on (digest "
            f"{run.train.class_digest[:12]}, there {saved['classes'][:12]}): give the dataset of the run"
        )


def headline(run: Run, first: int) -> str:
    device = jax.devices()[0]
    return (
        f"{run.config.model.name}, {len(run.train.classes)} classes, {run.config.model.compute_dtype}, on {run.mesh.size} x {device.device_kind}; "
        f"{run.train.name}: {len(run.train):,} images, {run.evaluation.name}: {len(run.evaluation):,}; "
        f"{run.steps:,} steps of {run.config.train.batch_size}{f', going on at {first:,}' if first else ''}"
    )


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """SIGTERM and SIGINT set the event; the second one acts as it would have without us. Only the main thread can listen."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, frame: Any) -> None:
        asked.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    run: Run,
    state: State,
    checkpoints: Checkpoints,
    origin: dict[str, Any],
    display: metrics.Display,
    folder: pathlib.Path,
    asked: threading.Event,
) -> State:
    """From `state` to the last step, with everything that is written on the way; `asked` is set when a signal asks to stop."""
    config, first = run.config, int(state.step)
    report: Report | None = None
    left_out = origin["left_out"]

    with (
        Watchdog(
            folder, config.train.watchdog_seconds, lambda: checkpoints.saving_since
        ) as watchdog,
        feed(run, first, display.say) as (batches, loader),
        Profile(config.train.profile_steps, folder / "profile") as profile,
        contextlib.closing(
            Log(run, folder, first, tuple(origin["seconds"]), display, loader)
        ) as log,
    ):
        watchdog.at("compiling")
        evaluator = Evaluator(run, display.say)
        stepper, votes, ahead = Stepper(run), hosts.Votes(run.mesh), next(batches)
        stepper.prepare(state, ahead)
        log.start()

        def counts() -> dict[str, Any]:
            """Steps that this run left out, and records that it could not decode, in all of its processes so far."""
            skipped = itertools.chain(*hosts.gather(sorted(loader.skipped) if loader else []))
            return {"left_out": left_out, "skipped": sorted({*origin["skipped"], *skipped})}

        def save(step: int) -> None:
            with log.paused(state):
                accuracy = report.top1 if report is not None and report.step == step else None
                checkpoints.save(
                    state, step, origin | counts() | {"seconds": log.all_times()}, accuracy
                )

        step = first
        for batch in itertools.chain([ahead], batches):
            if not stepper.prepared(batch):
                watchdog.at("compiling")
                with log.paused(state):
                    stepper.prepare(state, batch)
            watchdog.at(f"step {step + 1}")
            evaluation = run.next_end(step, config.train.eval_every_epochs)
            checkpoint = run.next_end(step, config.train.checkpoint_every_epochs)
            count = min(stepper.most, run.steps - step, evaluation - step, checkpoint - step)
            profile.before(step, count)
            state, values = stepper(state, batch, count)
            step += count
            profile.after(step, state)
            last = step == run.steps
            checkpoints.check()
            stop = votes(asked.is_set()) and not last
            log.add(step, count, values)
            evaluates, saves = step == evaluation or last, step == checkpoint or last or stop
            if bad := log.non_finite(evaluates or saves):
                if config.train.non_finite == "stop":
                    watchdog.at("a save")
                    save(int(state.step))
                    checkpoints.wait()
                    raise NonFiniteError(bad[0], run, folder)
                left_out += len(bad)
                display.say(
                    f"left out {len(bad)} steps whose loss or gradient is not finite or above the limit: {', '.join(map(str, bad[:20]))}"
                )
            if evaluates:
                watchdog.at(f"the evaluation after step {step}")
                with log.paused(state):
                    log.name_stragglers()
                    report = evaluator(state)
                    log.report(report)
            if saves:
                watchdog.at(f"the save of step {step}")
                save(step)
            if stop:
                checkpoints.wait()
                display.say(
                    f"stopped by a signal; step {step} is saved: start the same command again to go on"
                )
                raise Preempted(step)
            if last:
                break
            watchdog.at(f"loading the batch of step {step + 1}")
        times = log.all_times()
        watchdog.at("reading the last checkpoint back")
        checkpoints.read_back(state)
    assert report is not None
    finish(run, report, times, folder, display, counts())
    return state


class Profile:
    """A trace of `train.profile_steps` by JAX's profiler in `profile/` of the workdir, for TensorBoard or Perfetto. A context manager."""

    def __init__(self, steps: tuple[int, int] | None, folder: pathlib.Path) -> None:
        self.first, self.last = map(float, steps or (math.inf, math.inf))
        self.folder, self.runs = folder, False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        if self.runs:
            jax.profiler.stop_trace()

    def before(self, step: int, count: int) -> None:
        """Called before the `count` steps after `step`."""
        if not self.runs and step < self.first <= step + count:
            jax.profiler.start_trace(self.folder)
            self.runs = True

    def after(self, step: int, state: State) -> None:
        if self.runs and step >= self.last:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self.runs = False


class NonFiniteError(FloatingPointError):
    """A loss or gradient is no finite number; the state before that step is saved."""

    def __init__(self, step: int, run: Run, folder: pathlib.Path) -> None:
        train = run.config.train
        positions = step_positions(step - 1, train.batch_size)
        records = training_ids(
            positions, len(run.train), train.seed, train.batch_size, run.config.data.repeats
        ).tolist()
        if hosts.leader():
            metrics.replace_file(
                folder / "non_finite.json",
                json.dumps({"step": step, "split": run.train.name, "records": records}) + "\n",
            )
        limit = (
            f", or the loss is above train.loss_limit={train.loss_limit:g}"
            if train.loss_limit
            else ""
        )
        super().__init__(
            f"step {step}: loss or gradient is not finite{limit}; step {step - 1} is saved. Its samples are the records {records[:8]}... of "
            f"{run.train.name}, all of them in {folder / 'non_finite.json'}. Lower optim.learning_rate, or leave such steps out with "
            "train.non_finite='skip', in another workdir"
        )


class Stepper:
    """The training step, compiled once for each size of pictures."""

    def __init__(self, run: Run) -> None:
        self.most, self.taught = steps_per_dispatch(run.config), run.taught
        self.step = run.train_step()
        self.compiled: dict[tuple[int, ...], Any] = {}

    def prepared(self, batch: Any) -> bool:
        return batch["image"].shape in self.compiled

    def prepare(self, state: State, batch: Any) -> None:
        self.compiled[batch["image"].shape] = self.step.lower(
            *self.arguments(state, batch, 1)
        ).compile()

    def arguments(self, state: State, batch: Any, count: int) -> tuple[Any, ...]:
        return (state, batch, *(() if self.most == 1 else (np.int32(count),)), *self.taught)

    def __call__(self, state: State, batch: Any, count: int) -> tuple[State, Any]:
        """The state `count` steps on, and metrics: of the step, or in arrays of those steps where there may be several."""
        return self.compiled[batch["image"].shape](*self.arguments(state, batch, count))


def finish(
    run: Run,
    report: Report,
    times: tuple[float, float],
    folder: pathlib.Path,
    display: metrics.Display,
    counts: dict[str, Any],
) -> None:
    """Writes what a run leaves at its end: curves.png, and summary.json, which tells of images `skipped` and steps `left_out` if any were."""
    seconds, stalled = times
    gone = {"images_skipped": len(counts["skipped"]), "steps_left_out": counts["left_out"]}
    if hosts.leader():
        speed = {
            "seconds": seconds,
            "images_per_second": run.steps * run.config.train.batch_size / seconds,
            "input_stall_percent": 100 * stalled / seconds,
            **{name: count for name, count in gone.items() if count},
        }
        title = f"{run.config.model.name} on {run.train.name}: top-1 {100 * report.top1:.2f}% of {report.examples:,} evaluation examples"
        metrics.draw_curves(folder, title)
        # Last, since its presence says that the run is complete.
        metrics.write_summary(
            folder,
            {key: value for key, value in dataclasses.asdict(report).items() if value is not None}
            | speed,
        )
    hosts.wait_for_all("run is finished")
    display.say(
        f"finished: top-1 {100 * report.top1:.2f}% of {report.examples:,} examples; everything is in {folder}"
    )


def evaluate(
    config: Config,
    workdir: str | os.PathLike[str] | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
) -> Report:
    """Evaluates the newest checkpoint in `workdir`, or a file of `weights` (see `load_weights`), on the evaluation split: every example once.

    Raises InputError where there is neither or both, or where the config does not fit.
    """
    check(config)
    if (workdir is None) == (weights is None):
        raise InputError("evaluate needs a workdir or weights: give one of them")
    if weights is not None:
        run = hosts.together(lambda: prepare_run(config))
        variables = run.placed(load_weights(weights, run.model))
        return Evaluator(run)(
            State(jnp.zeros((), jnp.int32), variables["params"], variables["batch_stats"], ())
        )
    run, state = trained(config, pathlib.Path(workdir or ""))
    return Evaluator(run)(state)


def trained(config: Config, folder: pathlib.Path) -> tuple[Run, State]:
    """The newest state in a workdir, and its run; raises InputError where there is none or the config or its classes are others."""
    config = resolved(config)
    require_same_run(config, folder, measuring=True)
    if not (folder / "checkpoints").is_dir():
        raise InputError(
            f"workdir {str(folder)!r} has no checkpoints: train first, or give another --workdir"
        )
    run = hosts.together(lambda: prepare_run(config))
    with Checkpoints(folder / "checkpoints", say=note) as checkpoints:
        require_same_classes(run, checkpoints.provenance())
        return run, checkpoints.restore(run.abstract_state())
