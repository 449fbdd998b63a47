"""`fit` and `evaluate`, and the training loop."""

import contextlib
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from flaxres.config.check import check
from flaxres.config.files import resolved
from flaxres.config.schema import Config
from flaxres.data.loader import Loader
from flaxres.errors import InputError
from flaxres.training import hosts
from flaxres.training.checkpoints import Checkpoints
from flaxres.training.display import Display
from flaxres.training.evaluation import Evaluator, Report
from flaxres.training.lock import Lock, lock_workdir
from flaxres.training.log import Log
from flaxres.training.non_finite import NonFiniteError
from flaxres.training.patience import Patience
from flaxres.training.profiler import Profile
from flaxres.training.provenance import (
    Progress,
    Provenance,
    provenance,
    shared_facts,
    to_json as provenance_json,
)
from flaxres.training.resume import (
    prepare_run_in,
    require_same_config,
    restore_run,
    start_or_resume,
    write_config,
)
from flaxres.training.run import Run, feed, prepare_run
from flaxres.training.signals import Preempted, Stop, stop_signals, time_limit
from flaxres.training.staging import local
from flaxres.training.state import State
from flaxres.training.stepper import Stepper
from flaxres.training.summary import advice, finish, headline
from flaxres.training.uploads import Workdir, working_folder
from flaxres.training.watchdog import Watchdog
from flaxres.training.workdir import (
    CHECKPOINTS,
    PROFILE,
    SUMMARY,
)
from flaxres.weights.transfer import load_weights


def fit(config: Config, workdir: str | os.PathLike[str]) -> State:
    """Trains a config in a workdir, and resumes from the newest checkpoint there.

    Writes config.json, classes.json, metrics.jsonl, summary.json, curves.png, TensorBoard events
    and checkpoints/. A run that was killed and started again ends with a state that is
    bit-identical to that of an uninterrupted run.

    Args:
      config: the settings of the run.
      workdir: the folder of the run, which is created, or an address in an object store, such as
        gs://bucket/run; see `flaxres.training.uploads`.

    Returns:
      The state after the last step.

    Raises:
      InputError: the config could not train; raised before anything is compiled.
      Preempted: a SystemExit with code 75, after SIGTERM, SIGINT or `train.stop_after_minutes`,
        once the state is saved.
      NonFiniteError: a loss or gradient is not finite; the state before that step is saved.
      WriteError: a checkpoint or a log can't be written.

    The workdir is locked: a second run there is refused by an InputError that names the first.

    Examples:
      >>> import tempfile
      >>> from flaxres import DataConfig, ModelConfig, TrainConfig
      >>> model = ModelConfig(name="resnet20", depths=(1, 1, 1))
      >>> train = TrainConfig(steps=2, batch_size=16, eval_batch_size=256, devices=1)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     data = DataConfig(
      ...         name="digits", data_dir=folder, image_size=8, eval_size=8, eval_resize=8
      ...     )
      ...     int(fit(Config(model=model, data=data, train=train), f"{folder}/run").step)
      2
    """
    check(config)
    config = resolved(config)
    with working_folder(workdir) as place:
        folder = place.folder
        run = hosts.leader_first(lambda: prepare_run_in(config, folder))
        origin = provenance(run)
        hosts.require_same(shared_facts(config, origin))
        with lock_workdir(folder) as lock:
            # Another run may have finished here since the first look.
            hosts.leader_first(lambda: require_same_config(config, folder))
            write_config(run, folder)
            return _start(run, place, origin, lock)


def evaluate(
    config: Config,
    workdir: str | os.PathLike[str] | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
) -> Report:
    """Evaluates a checkpoint or weights on the evaluation split, every example once.

    Args:
      config: the settings of the run; those that affect only the evaluation may differ.
      workdir: the workdir, of which the newest checkpoint is evaluated.
      weights: a file of weights to evaluate instead; see `load_weights`.

    Returns:
      The loss and accuracies, each over all examples.

    Raises:
      InputError: both or none of `workdir` and `weights` are given, there is no checkpoint, or the
        config does not fit.

    Examples:
      >>> evaluate(Config())
      Traceback (most recent call last):
      flaxres.errors.InputError: evaluate needs a workdir or weights: give one of them
    """
    run, state = restored(config, workdir, weights)
    return Evaluator(run)(state)


def restored(
    config: Config,
    workdir: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> tuple[Run, State]:
    """Returns what `evaluate` evaluates: the run and its state.

    Args:
      config, workdir, weights: as for `evaluate`.

    Raises:
      InputError: as `evaluate` does.
    """
    check(config)
    config = resolved(config)
    if (workdir is None) == (weights is None):
        raise InputError("evaluate needs a workdir or weights: give one of them")
    if weights is None:
        return restore_run(config, local(workdir or ""), training=False)
    run = hosts.leader_first(lambda: prepare_run(config))
    variables = run.placed(load_weights(weights, run.model))
    step = jnp.zeros((), jnp.int32)
    return run, State(step, variables["params"], variables.get("batch_stats", {}), ())


def _start(run: Run, place: Workdir, origin: Provenance, lock: Lock | None) -> State:
    """Trains from the newest checkpoint, in a workdir that this run has locked."""
    config, folder, notes = run.config, place.folder, list[str]()
    keep = config.train.keep_checkpoints, config.train.keep_best
    with (
        stop_signals() as stop,
        time_limit(stop, config.train.stop_after_minutes),
        Checkpoints(
            folder / CHECKPOINTS,
            *keep,
            writing=True,
            say=notes.append,
            lock=lock,
            workdir=place,
        ) as checkpoints,
    ):
        state, progress = start_or_resume(run, checkpoints, origin, notes.append)
        first = int(state.step)
        with Display(run.steps, first, hosts.leader(), config.train.progress) as display:
            for line in [*notes, headline(run, first), *advice(run, state)]:
                display.say(line)
            patience = Patience(config.train, progress)
            if first < run.steps and not patience.over:
                # The summary of a run that ended early is out of date.
                if hosts.leader():
                    (folder / SUMMARY).unlink(missing_ok=True)
                return _train(run, place, state, checkpoints, origin, progress, display, stop)
            longer = (
                "give a larger train.patience"
                if patience.over
                else "give more epochs and train.extend, or another workdir"
            )
            display.say(
                f"step {first:,} was the last one: this run is finished; to train longer, {longer}"
            )
            # All processes follow what the leader sees.
            if not hosts.gather((folder / SUMMARY).exists())[0]:
                finish(run, place, Evaluator(run, display.say)(state), progress, display)
            return state


def _train(
    run: Run,
    place: Workdir,
    state: State,
    checkpoints: Checkpoints,
    origin: Provenance,
    progress: Progress,
    display: Display,
    stop: Stop,
) -> State:
    """Trains from `state` to the last step, and writes everything that a run leaves."""
    train, folder, first = run.config.train, place.folder, int(state.step)
    with (
        Watchdog(folder, train.watchdog_seconds, lambda: checkpoints.saving_since) as watchdog,
        feed(run, first, display.say) as (batches, loader),
        Profile(train.profile_steps, folder / PROFILE) as profile,
        Log(run, folder, first, progress.seconds, display, loader) as log,
    ):
        watchdog.at("compiling")
        loop = _Loop(
            run, folder, checkpoints, origin, progress, display, log, watchdog, profile, loader
        )
        try:
            state, report = loop.train(state, batches, stop)
        finally:
            loop.stepper.room.release()
        progress = loop.progress_now()
        watchdog.at("reading the last checkpoint back")
        checkpoints.read_back(state)
    finish(run, place, report, progress, display)
    return state


@dataclasses.dataclass(frozen=True)
class _Due:
    """The step at which the next dispatch ends, and the work that follows it."""

    step: int
    evaluates: bool
    saves: bool
    last: bool


class _Loop:
    """The training loop, with everything that it writes to."""

    def __init__(
        self,
        run: Run,
        folder: pathlib.Path,
        checkpoints: Checkpoints,
        origin: Provenance,
        progress: Progress,
        display: Display,
        log: Log,
        watchdog: Watchdog,
        profile: Profile,
        loader: Loader | None,
    ) -> None:
        self.run, self.folder, self.checkpoints = run, folder, checkpoints
        self.origin, self.earlier, self.left_out = origin, progress, progress.left_out
        self.display, self.log, self.watchdog, self.profile = display, log, watchdog, profile
        self.loader = loader
        self.evaluator = Evaluator(run, display.say)
        self.stepper = Stepper(run)
        self.votes = hosts.Votes(run.mesh)
        self.patience = Patience(run.config.train, progress)
        self.report: Report | None = None

    def train(self, state: State, batches: Iterable[Any], stop: Stop) -> tuple[State, Report]:
        """Trains to the last step, or until `train.patience` runs out.

        Returns:
          The final state and its evaluation.

        Raises:
          Preempted: `stop` was set in one of the processes, and the state is saved.
        """
        batches = iter(batches)
        first_batch = next(batches)
        self.stepper.prepare(state, first_batch)
        self.evaluator.begin()
        self.log.start()
        step, batch = int(state.step), first_batch
        while True:
            self.compile_for(state, batch)
            due = self.due_after(step)
            state = self.dispatch(state, batch, step, due.step - step)
            step = due.step
            # If one of several processes was asked to stop, the votes say so in all of them at the
            # same step, a few steps later.
            stopping = self.votes(stop.is_set()) and not due.last
            self.handle_non_finite(state, wait=due.evaluates or due.saves or stopping)
            if due.evaluates:
                self.evaluate(state, step)
            if due.saves or stopping or self.patience.over:
                self.watchdog.at(f"the save of step {step}")
                self.save(state, step)
            if due.last or self.patience.over:
                break
            if stopping:
                self.end_by_request(step, stop.reason)
            self.watchdog.at(f"loading the batch of step {step + 1}")
            with self.log.paused(state) if self.run.reloads(step) else contextlib.nullcontext():
                batch = next(batches)
        assert self.report is not None
        return state, self.report

    def compile_for(self, state: State, batch: Any) -> None:
        """Compiles the step where the batch has a new image size."""
        if not self.stepper.prepared(batch):
            self.watchdog.at("compiling")
            with self.log.paused(state):
                self.stepper.prepare(state, batch)

    def due_after(self, step: int) -> _Due:
        """Returns the end of the next dispatch, and whether an evaluation or a save follows."""
        train = self.run.config.train
        evaluation = self.run.next_end(step, train.eval_every_epochs)
        checkpoint = self.run.next_end(step, train.checkpoint_every_epochs)
        end = self.run.dispatch_end(step)
        last = end == self.run.steps
        return _Due(end, end == evaluation or last, end == checkpoint or last, last)

    def dispatch(self, state: State, batch: Any, step: int, count: int) -> State:
        """Runs the `count` steps after `step`, and logs them."""
        self.watchdog.at(f"step {step + 1}")
        self.profile.before(step, count)
        state, values = self.stepper(state, batch, count)
        self.profile.after(step + count, state)
        # Errors of what runs beside the training.
        self.checkpoints.check()
        self.evaluator.check()
        self.log.add(step + count, count, values)
        return state

    def handle_non_finite(self, state: State, wait: bool) -> None:
        """Reports steps that were not finite.

        Raises:
          NonFiniteError: with `train.non_finite="stop"`, once the state before them is saved.
        """
        if not (steps := self.log.non_finite(wait)):
            return
        if self.run.config.train.non_finite == "stop":
            # `train_step` changed nothing from the first of these steps on, so the state is still
            # the one before it, and so is its step number.
            self.watchdog.at("a save")
            self.save(state, int(state.step))
            self.checkpoints.wait()
            raise NonFiniteError(steps[0], self.run, self.folder)
        self.left_out += len(steps)
        self.display.say(
            f"left out {len(steps)} steps: loss or gradient not finite, or loss above the limit: "
            f"{', '.join(map(str, steps[:20]))}"
        )

    def evaluate(self, state: State, step: int) -> None:
        """Evaluates the state after `step`, and logs the report."""
        self.watchdog.at(f"the evaluation after step {step}")
        with self.log.paused(state):
            self.log.name_stragglers()
            self.report = self.evaluator(state)
            self.log.report(self.report)
        self.patience.see(self.report)
        if self.patience.over:
            self.display.say(f"step {step} is the last one: {self.patience}")

    def save(self, state: State, step: int) -> None:
        """Starts to save the state."""
        with self.log.paused(state):
            evaluated = self.report if self.report and self.report.step == step else None
            accuracy = evaluated.score if evaluated else None
            content = provenance_json(self.origin, self.progress_now())
            self.checkpoints.save(state, step, content, accuracy)

    def end_by_request(self, step: int, reason: str) -> None:
        """Ends the process once the state is saved.

        Raises:
          Preempted: always.
        """
        self.checkpoints.wait()
        self.display.say(
            f"stopped by {reason}; step {step} is saved: start the same command again to resume"
        )
        raise Preempted(step)

    def progress_now(self) -> Progress:
        """Returns the progress of the run so far, over all of its processes."""
        ours = sorted(self.loader.skipped) if self.loader else []
        skipped = itertools.chain(*hosts.gather(ours))
        return Progress(
            seconds=self.log.all_times(),
            left_out=self.left_out,
            skipped=tuple(sorted({*self.earlier.skipped, *skipped})),
            best=self.patience.best,
            waited=self.patience.waited,
        )
