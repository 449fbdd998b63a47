"""A checked config with what follows from it: data, network, optimizer, schedule and input."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jaxtyping import Float

from flaxres.config.check import check, check_devices
from flaxres.config.schema import Config, DataConfig
from flaxres.data import decode
from flaxres.data._cores import default_workers
from flaxres.data.balance import Balance
from flaxres.data.datasets import open_or_prepare
from flaxres.data.labels import all_labels, class_counts, require_labels
from flaxres.data.loader import Loader, Speed
from flaxres.data.resident import require_resident, resident
from flaxres.data.rows import training_rows
from flaxres.data.source import Source
from flaxres.errors import InputError
from flaxres.models.network import Network
from flaxres.models.registry import create_model
from flaxres.training.dispatch import steps_per_dispatch
from flaxres.training.loggers import require_loggers
from flaxres.training.losses import class_weights, label_weights
from flaxres.training.mesh import data_mesh, place, replicated, split
from flaxres.training.optimizers import learning_rate, optimizer
from flaxres.training.state import State, abstract_state, create_state, random_variables
from flaxres.training.steps import compiled_eval_step, compiled_train_step, eval_rows
from flaxres.training.whitening import require_stem, whitened
from flaxres.weights.transfer import load_weights

# None in the config keeps what the model has.
OPTIONAL_ATTRIBUTES = ("stem", "anti_alias", "depths", "widths", "stem_width", "shortcut")


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts that `fit`, `evaluate` and the measurements share, each built on first use.

    Attributes:
      config: a checked config.
      train: the training split.
      evaluation: the evaluation split.
      elsewhere: devices to compile for where they are not this machine's.
    """

    config: Config
    train: Source
    evaluation: Source
    elsewhere: jax.sharding.Mesh | None = None

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """The devices of the run."""
        if self.elsewhere is not None:
            return self.elsewhere
        return data_mesh(check_devices(self.config, jax.device_count()))

    @functools.cached_property
    def model(self) -> Network:
        """The network that is trained."""
        model = self.config.model
        values = {name: getattr(model, name) for name in OPTIONAL_ATTRIBUTES}
        return create_model(
            model.name,
            num_classes=len(self.train.classes),
            dtype=jnp.dtype(model.compute_dtype),
            param_dtype=jnp.dtype(model.param_dtype),
            bn_group=model.bn_group,
            bn_momentum=model.bn_momentum,
            dropout=model.dropout,
            stochastic_depth=model.stochastic_depth,
            scan_blocks=model.scan_blocks,
            remat=model.remat,
            head_bias=model.head_bias,
            **{name: value for name, value in values.items() if value is not None},
        )

    @functools.cached_property
    def teacher(self) -> Network | None:
        """The network that is distilled from, None without `optim.distill_model`."""
        name = self.config.optim.distill_model
        dtype = jnp.dtype(self.config.model.compute_dtype)
        return (
            create_model(name, num_classes=len(self.train.classes), dtype=dtype) if name else None
        )

    @functools.cached_property
    def teacher_variables(self) -> tuple[Any, ...]:
        """The last arguments of the step: the teacher's variables on the devices, or nothing."""
        if self.teacher is None:
            return ()
        return (self.placed(load_weights(str(self.config.optim.distill_weights), self.teacher)),)

    def placed(self, variables: Any) -> Any:
        """Replicates host arrays on the devices of the run."""
        return jax.tree.map(lambda leaf: place(np.asarray(leaf), replicated(self.mesh)), variables)

    def first_state(self) -> State:
        """Returns the state at step 0, from `model.weights` or random variables.

        Raises:
          InputError: the weights don't fit.
        """
        path, variables = self.config.model.weights, None
        if path:
            variables = self.placed(load_weights(path, self.model, adapt=True))
        elif self.config.model.stem_init == "whitening":
            initialise = functools.partial(random_variables, self.model, self.config)
            random = jax.device_get(jax.jit(initialise)(np.uint32(self.config.train.seed)))
            ours = whitened(random, self.train, self.config.data, training_transform(self, 0).size)
            # The libraries of other processes may round otherwise: all take the first one's.
            variables = self.placed(multihost_utils.broadcast_one_to_all(ours))
        return create_state(self.model, self.tx, self.config, self.mesh, variables)

    def abstract_state(self) -> State:
        """Returns the shapes, dtypes and shardings of the state, with nothing computed."""
        return abstract_state(self.model, self.tx, self.config, self.mesh)

    def train_step(self) -> Any:
        """Returns the jitted training step: see `compiled_train_step`."""
        return compiled_train_step(
            self.config,
            self.model,
            self.tx,
            self.schedule,
            self.mesh,
            self.steps_per_epoch,
            self.teacher,
            self.class_weights,
            self.balance,
        )

    @functools.cached_property
    def class_weights(self) -> Float[np.ndarray, " classes"] | None:
        """The weights of the classes in the loss, None without `optim.class_balance`."""
        if not (power := self.config.optim.class_balance):
            return None
        counts = class_counts(self.train)
        if self.config.data.multi_label:
            return label_weights(counts, len(self.train), power)
        return class_weights(counts, power)

    @functools.cached_property
    def balance(self) -> Balance | None:
        """The share of each class in an epoch, None without `data.balance`."""
        power = self.config.data.balance
        return Balance.of(all_labels(self.train), power) if power else None

    def eval_step(self) -> Any:
        """Returns the jitted evaluation step: see `compiled_eval_step`."""
        return compiled_eval_step(self.config, self.model, self.mesh)

    def eval_rows(self, classes: Sequence[int] | None = None) -> Any:
        """Returns the jitted step that evaluates each row by itself: see `eval_rows`."""
        step = functools.partial(eval_rows, classes=classes)
        return compiled_eval_step(self.config, self.model, self.mesh, step)

    @property
    def steps_per_epoch(self) -> float:
        """Steps of an epoch, which may be no whole number."""
        return len(self.train) / self.config.train.batch_size

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        train = self.config.train
        return train.steps or max(round(train.epochs * self.steps_per_epoch), 1)

    @functools.cached_property
    def schedule(self) -> optax.Schedule:
        """The learning rate by step."""
        return learning_rate(self.config.optim, self.steps, self.steps_per_epoch)

    @functools.cached_property
    def tx(self) -> optax.GradientTransformation:
        """The optimizer."""
        return optimizer(self.config.optim, self.schedule)

    def speed(self, images: int) -> Speed:
        """Returns the loader's threads, processes and buffers for so many images."""
        data = self.config.data
        speed = Speed(
            workers=self._workers(images)[0],
            prefetch=data.prefetch,
            buffer_bytes=data.buffer_mib << 20,
            worker_seconds=data.worker_seconds,
        )
        return dataclasses.replace(speed, threads=data.threads) if data.threads else speed

    def slow_input(self) -> str:
        """Returns why threads decode the training split on many cores; '' if nothing is slow."""
        return self._workers(len(self.train))[1]

    def _workers(self, images: int) -> tuple[int, str]:
        """Returns the number of decoding processes, and why there are none on many cores."""
        data, train = self.config.data, self.config.train
        if data.workers is not None or data.threads:
            return data.workers or 0, ""
        side = max(data.eval_size, *(side for _, side in self.image_sizes()))
        batch = max(train.batch_size, train.eval_batch_size) * side * side * 3
        # An evaluation has a loader of its own.
        shared = 2 * max(batch, min(data.prefetch * batch, data.buffer_mib << 20))
        cache = data.cache_mib << 20 if data.name == "parquet" else 0
        return default_workers(images, shared, cache, jax.process_count())

    def next_end(self, step: int, epochs: float) -> int:
        """Returns the first step after `step` at which a multiple of `epochs` epochs is over.

        Where epochs are no whole number of steps, they end at the nearest one.
        """
        period = max(epochs * self.steps_per_epoch, 1)
        number = int(step / period) + 1
        return end if (end := round(number * period)) > step else round((number + 1) * period)

    def dispatch_end(self, step: int) -> int:
        """Returns the step at which the dispatch after `step` ends.

        A dispatch has at most `steps_per_dispatch` steps, and ends no later than the next
        evaluation, the next save, the next image size and the run.
        """
        train = self.config.train
        ends = [
            step + steps_per_dispatch(self.config),
            self.steps,
            self.next_end(step, train.eval_every_epochs),
            self.next_end(step, train.checkpoint_every_epochs),
            *(start for start, _ in self.image_sizes() if start > step),
        ]
        return min(ends)

    def reloads(self, step: int) -> bool:
        """Returns whether a dataset on the devices is loaded in another image size after `step`."""
        return self.config.data.resident and any(start == step for start, _ in self.image_sizes())

    def image_sizes(self) -> list[tuple[int, int]]:
        """Returns (first step, height and width) of each image size of the training."""
        data = self.config.data
        later = [
            (round(epoch * self.steps_per_epoch), side) for epoch, side in data.progressive_sizes
        ]
        return [(0, data.image_size), *later]


def prepare_run(config: Config, training: bool = True) -> Run:
    """Opens the data of a config and checks it, before anything is compiled.

    Args:
      config: the config.
      training: opens the training split, too; else the evaluation split takes its place.

    Raises:
      InputError: the config could not train on this machine or with this data.
    """
    check(config)
    check_devices(config, jax.device_count())
    data, train = config.data, config.train
    require_x64(config)
    splits = [data.train_split, data.eval_split] if training else [data.eval_split]
    sources = open_data(data, splits)
    for opened in sources:
        require_labels(opened)
    source, evaluation = sources[0], sources[-1]
    if source.classes != evaluation.classes:
        raise InputError(
            f"{source.name} and {evaluation.name} have different classes: they must be splits of "
            "one dataset"
        )
    require_loggers(train)
    run = Run(config, source, evaluation)
    if training and config.model.stem_init == "whitening":
        initialise = functools.partial(random_variables, run.model, config)
        shapes = jax.eval_shape(initialise, jax.ShapeDtypeStruct((), jnp.uint32))
        require_stem(shapes, training_transform(run, 0).size)
    if data.resident:
        if training:
            require_resident(source, max(side for _, side in run.image_sizes()))
        require_resident(evaluation, data.eval_size)
    if training and (samples := run.steps * train.batch_size) >= 2**32:
        raise InputError(
            f"{samples:,} samples in all: positions have 32 bits; lower train.epochs or train.steps"
        )
    return run


def open_data(data: DataConfig, splits: Sequence[str]) -> list[Source]:
    """Opens splits of the dataset of a config; see `flaxres.data.datasets.open_or_prepare`.

    Args:
      data: settings of the dataset.
      splits: names of the splits.

    Raises:
      InputError: the dataset can't be opened.
    """
    return open_or_prepare(
        data.name,
        splits,
        data.source,
        data.data_dir,
        data.bad_images,
        data.validation,
        data.copy,
        data.cache_mib,
        data.multi_label,
    )


def evaluation_transform(data: DataConfig) -> decode.CentreCrop:
    """Returns the crop of the images of an evaluation."""
    return decode.CentreCrop(data.eval_size, data.eval_resize, data.interpolation, data.uses_exif)


def require_x64(config: Config) -> None:
    """Checks that JAX computes in float64 if the config does.

    Raises:
      InputError: it does not.
    """
    dtypes = (config.model.compute_dtype, config.model.param_dtype)
    if "float64" in dtypes and not jax.config.read("jax_enable_x64"):
        raise InputError(
            "float64 in model.dtype or model.param_dtype: set JAX_ENABLE_X64=1 in the environment, "
            "or use float32"
        )


def training_transform(run: Run, step: int) -> decode.Transform:
    """Returns the crop of a step's images, in the image size of its epoch."""
    data = run.config.data
    size = [side for start, side in run.image_sizes() if start <= step][-1]
    if data.crop == "centre":
        return decode.CentreCrop(size, size, data.interpolation, data.uses_exif)
    seed = run.config.train.seed
    return decode.RandomResizedCrop(
        size, seed, data.crop_scale, data.crop_ratio, data.crop_interpolation, data.uses_exif
    )


def _resident_datasets(run: Run, step: int) -> Iterator[dict[str, jax.Array]]:
    """Yields the dataset for each dispatch from `step` on; a size is loaded when it is needed."""
    size, dataset = 0, dict[str, jax.Array]()
    while True:
        transform = training_transform(run, step)
        if transform.size != size:
            dataset.clear()  # the memory of the size before
            size = transform.size
            speed = run.speed(len(run.train))
            dataset = resident(run.train, transform, replicated(run.mesh), speed)
        yield dataset
        step = run.dispatch_end(step)


@contextlib.contextmanager
def feed(
    run: Run, first: int, say: Callable[[str], None]
) -> Iterator[tuple[Iterator[Any], Loader | None]]:
    """Yields the step's input from step `first` on, and the loader.

    The input is the loader's batches. Where the dataset is resident, it is the whole dataset for
    each dispatch, in the image size of its steps, and there is no loader.

    Args:
      run: the run.
      first: the number of finished steps.
      say: gets a line about each image that is skipped.
    """
    train, data = run.config.train, run.config.data
    if reason := run.slow_input():
        say(reason)
    if data.resident:
        yield _resident_datasets(run, first), None
        return

    rows = training_rows(
        len(run.train),
        train.batch_size,
        train.seed,
        first,
        run.steps,
        functools.partial(training_transform, run),
        data.repeats,
        run.balance,
    )
    speed = run.speed(len(run.train))
    with Loader(run.train, rows, split(run.mesh), speed, data.bad_images, say) as loader:
        yield iter(loader), loader
