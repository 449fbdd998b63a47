"""`fit` and `evaluate`: everything around the two steps."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import flaxres.data.decode as decode
from flaxres.data.loader import Loader, evaluation_rows, resident, training_rows
from flaxres.data.order import uniforms
from flaxres.data.sources import Source, open_source
from flaxres.errors import InputError
from flaxres.models.registry import create_model
from flaxres.training import metrics
from flaxres.training.checkpoints import Checkpoints
from flaxres.training.config import Config, DataConfig, check, check_devices, differences, from_json, to_json
from flaxres.training.mesh import data_mesh, replicated, split
from flaxres.training.optimizers import learning_rate, optimizer
from flaxres.training.state import State, abstract_state, create_state
from flaxres.training.steps import compiled_eval_step, compiled_train_step

FETCH_BEHIND = 2


class Preempted(SystemExit):
    """SIGTERM or SIGINT came, and the state was saved: exit code 75, start the same command again."""

    def __init__(self, step: int) -> None:
        super().__init__(75)
        self.step = step


@dataclasses.dataclass(frozen=True)
class Report:
    """Of an evaluation: accuracies in [0, 1], mean loss in nats, and how many examples were counted, each once."""

    top1: float
    top5: float | None
    loss: float
    examples: int
    step: int


@dataclasses.dataclass(frozen=True)
class Run:
    """A checked config with its data, network and clock: what `fit` and `evaluate` share."""

    config: Config
    train: Source
    evaluation: Source

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        return data_mesh(check_devices(self.config, jax.device_count()))

    @functools.cached_property
    def model(self) -> nn.Module:
        model = self.config.model
        attributes: dict[str, Any] = {} if model.stem is None else {"stem": model.stem}
        return create_model(
            model.name,
            num_classes=len(self.train.classes),
            dtype=jnp.dtype(model.dtype),
            param_dtype=jnp.dtype(model.param_dtype),
            bn_group=model.bn_group,
            bn_momentum=model.bn_momentum,
            dropout=model.dropout,
            **attributes,
        )

    @property
    def steps_per_epoch(self) -> float:
        return len(self.train) / self.config.train.batch_size

    @property
    def steps(self) -> int:
        return self.config.train.steps or max(round(self.config.train.epochs * self.steps_per_epoch), 1)

    @functools.cached_property
    def schedule(self) -> optax.Schedule:
        return learning_rate(self.config.optim, self.steps, self.steps_per_epoch)

    @functools.cached_property
    def tx(self) -> optax.GradientTransformation:
        return optimizer(self.config.optim, self.schedule)

    @property
    def threads(self) -> int:
        return self.config.data.threads or os.cpu_count() or 1

    def every(self, epochs: float) -> int:
        return max(round(epochs * self.steps_per_epoch), 1)


def prepare_run(config: Config) -> Run:
    """Refuses, before anything is compiled, whatever could not train: raises InputError."""
    check(config)
    check_devices(config, jax.device_count())
    if config.model.dtype == "float64" or config.model.param_dtype == "float64":
        if not jax.config.read("jax_enable_x64"):
            raise InputError("float64 in model.dtype or model.param_dtype: set JAX_ENABLE_X64=1 in the environment, or use float32")
    data = config.data
    train, evaluation = (open_source(data.name, part, data.source, data.data_dir) for part in (data.train_split, data.eval_split))
    if train.classes != evaluation.classes:
        raise InputError(f"{train.name} and {evaluation.name} have other classes: they must be splits of one dataset")
    run = Run(config, train, evaluation)
    if (last := run.steps * config.train.batch_size) >= 2**32:
        raise InputError(f"{last:,} samples in all: positions are 32 bits wide; lower train.epochs or train.steps")
    return run


def training_transform(data: DataConfig, seed: int) -> Callable[[bytes, int], Any]:
    if data.crop != "random_resized":
        return lambda image, position: decode.centre_crop(image, data.image_size, data.image_size, data.interpolation)

    def transform(image: bytes, position: int) -> Any:
        numbers = uniforms(seed, position, (decode.TRIES, 4))
        return decode.random_resized_crop(image, data.image_size, numbers, data.crop_scale, data.crop_ratio, data.interpolation)

    return transform


class Evaluator:
    """Exact evaluation: every example once, on any number of devices; compiled once, its batches kept on the device where the data are resident."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.kept: list[Any] | None = None
        state = abstract_state(run.model, run.tx, run.config.data.image_size, run.mesh)
        self.compiled = compiled_eval_step(run.config, run.model, run.mesh).lower(state.variables, abstract_batch(run)).compile()

    def batches(self) -> Iterator[Any]:
        data, run = self.run.config.data, self.run
        if self.kept is not None:
            yield from self.kept
            return
        rows = evaluation_rows(len(run.evaluation), run.config.train.eval_batch_size)

        def transform(image: bytes, position: int) -> Any:
            return decode.centre_crop(image, data.eval_size, data.eval_resize, data.interpolation)

        loader = Loader(run.evaluation, rows, transform, data.eval_size, split(run.mesh), run.threads, data.prefetch)
        with loader:
            if not data.resident:
                yield from loader
                return
            self.kept = list(loader)
        yield from self.kept

    def __call__(self, state: State) -> Report:
        sums: dict[str, Any] = {}
        for batch in self.batches():
            part = self.compiled(state.variables, batch)
            sums = {key: sums[key] + value for key, value in part.items()} if sums else part
        totals = {key: float(value) for key, value in sums.items()}
        examples = round(totals["examples"])
        top5 = totals["top5"] / examples if len(self.run.evaluation.classes) > 5 else None
        return Report(totals["top1"] / examples, top5, totals["loss"] / examples, examples, int(state.step))


def abstract_batch(run: Run) -> dict[str, Any]:
    """The shapes of one evaluation batch."""
    count, size = run.config.train.eval_batch_size, run.config.data.eval_size
    shapes = {"image": ((count, size, size, 3), jnp.uint8), "label": ((count,), jnp.int32), "position": ((count,), jnp.uint32)}
    shapes["weight"] = ((count,), jnp.float32)
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=split(run.mesh)) for name, (shape, dtype) in shapes.items()}


def fit(config: Config, workdir: str | os.PathLike[str]) -> State:
    """Trains `config` in `workdir`, going on from the newest checkpoint there, and returns the final state.

    Writes config.json, metrics.jsonl, summary.json, curves.png, TensorBoard events and checkpoints/. A run that was killed and started again ends
    in the same bits as one that was not.

    Raises InputError for input that could not train, before anything is compiled; Preempted (a SystemExit with code 75) after SIGTERM or
    SIGINT, once the state is saved.
    """
    folder = pathlib.Path(workdir)
    check(config)
    require_same_run(config, folder)
    run = prepare_run(config)
    metrics.require_writable(folder)
    if jax.process_index() == 0:
        metrics.replace_file(folder / "config.json", to_json(config))
    with Checkpoints(folder / "checkpoints", config.train.keep_checkpoints) as checkpoints:
        state, provenance = begin(run, checkpoints)
        first = int(state.step)
        with metrics.Display(run.steps, first, jax.process_index() == 0, config.train.progress) as display:
            display.say(headline(run, first))
            if first >= run.steps:
                display.say(f"step {first:,} was the last one: this run is finished; to train longer, give more epochs and another workdir")
                if not (folder / metrics.SUMMARY).exists():
                    finish(run, Evaluator(run)(state), tuple(provenance["seconds"]), folder, display)
                return state
            return train(run, state, checkpoints, provenance, display, folder)


def require_same_run(config: Config, folder: pathlib.Path) -> None:
    if (folder / "config.json").exists():
        if changed := differences(from_json(folder / "config.json"), config):
            raise InputError(f"workdir {str(folder)!r} has a run with another config ({'; '.join(changed)}): use another --workdir, or that config")


def begin(run: Run, checkpoints: Checkpoints) -> tuple[State, dict[str, Any]]:
    """The newest state in the workdir, or a new one, and the provenance that its checkpoints carry."""
    import flaxres

    config, size = run.config, run.config.data.image_size
    provenance = {"flaxres": flaxres.__version__, "jax": jax.__version__, "data": run.train.digest, "batch_size": config.train.batch_size, "seconds": (0.0, 0.0)}
    if checkpoints.latest_step() is None:
        return create_state(run.model, run.tx, config.train.seed, size, run.mesh), provenance
    state, saved = checkpoints.restore(abstract_state(run.model, run.tx, size, run.mesh))
    if saved["data"] != run.train.digest:
        raise InputError(f"dataset {run.train.name} has digest {run.train.digest[:12]}, the run's checkpoint was trained on {saved['data'][:12]}")
    return state, provenance | {"seconds": saved["seconds"]}


def headline(run: Run, first: int) -> str:
    device = jax.devices()[0]
    return (
        f"{run.config.model.name}, {len(run.train.classes)} classes, {run.config.model.dtype}, on {run.mesh.size} x {device.device_kind}; "
        f"{run.train.name}: {len(run.train):,} images, {run.evaluation.name}: {len(run.evaluation):,}; "
        f"{run.steps:,} steps of {run.config.train.batch_size}{f', going on at {first:,}' if first else ''}"
    )


class Log:
    """Metrics on their way out. Those of a step are read two steps later, or before a pause, so that the device never waits for the host.

    Times leave evaluations and saves out, and include what earlier processes of the run spent (`before`: seconds trained, seconds stalled).
    """

    def __init__(self, run: Run, folder: pathlib.Path, first: int, before: tuple[float, float], display: metrics.Display, loader: Loader | None) -> None:
        self.run, self.display, self.loader, self.before = run, display, loader, before
        self.writer = metrics.Writer(folder, first, run.config.train.tensorboard) if jax.process_index() == 0 else None
        self.pending: collections.deque[tuple[int, Any]] = collections.deque()
        self.trained, self.since = 0.0, time.perf_counter()
        self.last_step, self.last_times = first, (0.0, 0.0)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock of training, with everything logged that was pending."""
        self.flush()
        self.trained += time.perf_counter() - self.since
        try:
            yield
        finally:
            self.since = time.perf_counter()

    def times(self) -> tuple[float, float]:
        """Seconds that this process has trained, and of these, waited for input."""
        return self.trained + time.perf_counter() - self.since, self.loader.stall_seconds if self.loader else 0.0

    def all_times(self) -> tuple[float, float]:
        trained, stalled = self.times()
        return self.before[0] + trained, self.before[1] + stalled

    def add(self, step: int, values: Any) -> None:
        """Takes note of every step, and logs each `log_every_steps`-th and the last."""
        if step % self.run.config.train.log_every_steps == 0 or step == self.run.steps:
            self.pending.append((step, values))
        while self.pending and self.pending[0][0] + FETCH_BEHIND <= step:
            self.emit(*self.pending.popleft())

    def flush(self) -> None:
        while self.pending:
            self.emit(*self.pending.popleft())

    def emit(self, step: int, values: Any) -> None:
        row = {f"train/{key}": float(value) for key, value in values.items()}
        times = self.times()
        seconds, stalled = times[0] - self.last_times[0], times[1] - self.last_times[1]
        row["train/learning_rate"] = float(self.run.schedule(step - 1))
        row["train/images_per_second"] = (step - self.last_step) * self.run.config.train.batch_size / max(seconds, 1e-9)
        row["train/input_stall_percent"] = 100 * stalled / max(seconds, 1e-9)
        self.last_step, self.last_times = step, times
        self.write(step, row)
        self.display.step(step, step / self.run.steps_per_epoch, row)

    def report(self, report: Report) -> None:
        values = {key: float(value) for key, value in dataclasses.asdict(report).items() if value is not None and key != "step"}
        self.write(report.step, {f"eval/{key}": value for key, value in values.items()})
        self.display.say(
            f"step {report.step}/{self.run.steps}  evaluation: top-1 {100 * report.top1:.2f}%  loss {report.loss:.4f}  "
            f"on {report.examples:,} examples"
        )

    def write(self, step: int, row: dict[str, float]) -> None:
        if self.writer:
            self.writer.write(step, step / self.run.steps_per_epoch, row)

    def close(self) -> None:
        if self.writer:
            self.writer.close()


@contextlib.contextmanager
def feed(run: Run, first: int) -> Iterator[tuple[Iterator[Any], Loader | None]]:
    """What the step takes: the loader's batches, or the whole dataset again and again where it is on the devices."""
    config, data = run.config, run.config.data
    transform = training_transform(data, config.train.seed)
    if data.resident:
        yield itertools.repeat(resident(run.train, transform, data.image_size, replicated(run.mesh), run.threads)), None
        return
    rows = training_rows(len(run.train), config.train.batch_size, config.train.seed, first, run.steps)
    with Loader(run.train, rows, transform, data.image_size, split(run.mesh), run.threads, data.prefetch) as loader:
        yield iter(loader), loader


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
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(run: Run, state: State, checkpoints: Checkpoints, provenance: dict[str, Any], display: metrics.Display, folder: pathlib.Path) -> State:
    config, first = run.config, int(state.step)
    evaluator = Evaluator(run)
    eval_every, save_every = run.every(config.train.eval_every_epochs), run.every(config.train.checkpoint_every_epochs)
    report: Report | None = None

    with feed(run, first) as (batches, loader), stop_signals() as asked:
        batches, step_function = compiled(run, state, batches)
        log = Log(run, folder, first, tuple(provenance["seconds"]), display, loader)

        def save(step: int) -> None:
            with log.paused():
                checkpoints.save(state, step, provenance | {"seconds": log.all_times()})

        for step, batch in zip(range(first + 1, run.steps + 1), batches, strict=False):
            state, values = step_function(state, batch)
            last = step == run.steps
            log.add(step, values)
            if asked.is_set() and not last:
                save(step)
                checkpoints.wait()
                display.say(f"stopped by a signal; step {step} is saved: start the same command again to go on")
                raise Preempted(step)
            if step % eval_every == 0 or last:
                with log.paused():
                    report = evaluator(state)
                    log.report(report)
            if step % save_every == 0 or last:
                save(step)
    log.close()
    checkpoints.wait()
    assert report is not None
    finish(run, report, log.all_times(), folder, display)
    return state


def compiled(run: Run, state: State, batches: Iterator[Any]) -> tuple[Iterator[Any], Callable[[State, Any], tuple[State, Any]]]:
    """The training step compiled for the first of `batches`, and all of `batches`."""
    first = next(batches)
    step = compiled_train_step(run.config, run.model, run.tx, run.mesh).lower(state, first).compile()
    return itertools.chain([first], batches), step


def finish(run: Run, report: Report, times: tuple[float, float], folder: pathlib.Path, display: metrics.Display) -> None:
    """Writes what a run leaves at its end: summary.json and curves.png."""
    seconds, stalled = times
    if jax.process_index() == 0:
        speed = {
            "seconds": seconds,
            "images_per_second": run.steps * run.config.train.batch_size / seconds,
            "input_stall_percent": 100 * stalled / seconds,
        }
        metrics.write_summary(folder, {key: value for key, value in dataclasses.asdict(report).items() if value is not None} | speed)
        metrics.draw_curves(
            folder, f"{run.config.model.name} on {run.train.name}: top-1 {100 * report.top1:.2f}% of {report.examples:,} evaluation examples"
        )
    display.say(f"finished: top-1 {100 * report.top1:.2f}% of {report.examples:,} examples; everything is in {folder}")


def evaluate(config: Config, workdir: str | os.PathLike[str]) -> Report:
    """Evaluates the newest checkpoint in `workdir` on the config's evaluation split: every example once.

    Raises InputError where there is no checkpoint or the config does not fit it.
    """
    folder = pathlib.Path(workdir)
    check(config)
    require_same_run(config, folder)
    if not (folder / "checkpoints").is_dir():
        raise InputError(f"workdir {str(folder)!r} has no checkpoints: train first, or give another --workdir")
    run = prepare_run(config)
    with Checkpoints(folder / "checkpoints", config.train.keep_checkpoints) as checkpoints:
        state, _ = checkpoints.restore(abstract_state(run.model, run.tx, config.data.image_size, run.mesh))
    return Evaluator(run)(state)
