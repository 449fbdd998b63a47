"""A checked config with what follows from it: data, network, schedule, and what feeds the step."""

import contextlib
import dataclasses
import functools
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from flaxres.config.check import check, check_devices
from flaxres.config.schema import Config
from flaxres.data import decode
from flaxres.data.datasets import open_or_prepare
from flaxres.data.loader import Loader, Speed
from flaxres.data.resident import require_resident, resident
from flaxres.data.rows import training_rows
from flaxres.data.source import Source
from flaxres.errors import InputError
from flaxres.models.network import Network
from flaxres.models.registry import create_model
from flaxres.training.mesh import data_mesh, place, replicated, split
from flaxres.training.optimizers import learning_rate, optimizer
from flaxres.training.state import State, abstract_state, born, create_state
from flaxres.training.steps import compiled_train_step
from flaxres.training.whitening import whitened
from flaxres.weights.transfer import load_weights


@dataclasses.dataclass(frozen=True)
class Run:
    """A checked config with its data, network and clock: what `fit` and `evaluate` share."""

    config: Config
    train: Source
    evaluation: Source
    elsewhere: jax.sharding.Mesh | None = None
    """Devices to compile for, where they are not this machine's."""

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        if self.elsewhere is not None:
            return self.elsewhere
        return data_mesh(check_devices(self.config, jax.device_count()))

    @functools.cached_property
    def model(self) -> Network:
        model = self.config.model
        attributes = {
            name: value
            for name in ("stem", "anti_alias", "depths", "widths", "stem_width", "shortcut")
            if (value := getattr(model, name)) is not None
        }
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
            **attributes,
        )

    @functools.cached_property
    def teacher(self) -> Network | None:
        """The network that is learned from."""
        name = self.config.optim.distill_model
        return (
            create_model(
                name,
                num_classes=len(self.train.classes),
                dtype=jnp.dtype(self.config.model.compute_dtype),
            )
            if name
            else None
        )

    @functools.cached_property
    def taught(self) -> tuple[Any, ...]:
        """The variables of the teacher, on the devices: the step's last argument where there is one."""
        return (
            (self.placed(load_weights(str(self.config.optim.distill_weights), self.teacher)),)
            if self.teacher
            else ()
        )

    def placed(self, variables: Any) -> Any:
        return jax.tree.map(lambda leaf: place(np.asarray(leaf), replicated(self.mesh)), variables)

    def first_state(self) -> State:
        """The state at step 0: random, with a whitening stem or without, or from a file of weights."""
        path, variables = self.config.model.weights, None
        if path:
            variables = self.placed(load_weights(path, self.model, adapt=True))
        elif self.config.model.stem_init == "whitening":
            random = jax.device_get(jax.jit(functools.partial(born, self.model, self.config))())
            ours = whitened(random, self.train, self.config.data, training_transform(self, 0).size)
            # The first process's, since others' libraries may round otherwise.
            variables = self.placed(multihost_utils.broadcast_one_to_all(ours))
        return create_state(self.model, self.tx, self.config, self.mesh, variables)

    def train_step(self) -> Any:
        """See `compiled_train_step`."""
        return compiled_train_step(
            self.config,
            self.model,
            self.tx,
            self.schedule,
            self.mesh,
            self.steps_per_epoch,
            self.teacher,
        )

    @property
    def steps_per_epoch(self) -> float:
        return len(self.train) / self.config.train.batch_size

    @property
    def steps(self) -> int:
        return self.config.train.steps or max(
            round(self.config.train.epochs * self.steps_per_epoch), 1
        )

    @functools.cached_property
    def schedule(self) -> optax.Schedule:
        return learning_rate(self.config.optim, self.steps, self.steps_per_epoch)

    @functools.cached_property
    def tx(self) -> optax.GradientTransformation:
        return optimizer(self.config.optim, self.schedule)

    @property
    def speed(self) -> Speed:
        data = self.config.data
        speed = Speed(
            workers=data.workers,
            prefetch=data.prefetch,
            buffer_bytes=data.buffer_mib << 20,
            worker_seconds=data.worker_seconds,
        )
        return dataclasses.replace(speed, threads=data.threads) if data.threads else speed

    def next_end(self, step: int, epochs: float) -> int:
        """The first step after `step` at which a multiple of `epochs` is over: epochs that are no whole number of steps end at the nearest."""
        period = max(epochs * self.steps_per_epoch, 1)
        number = int(step / period) + 1
        return end if (end := round(number * period)) > step else round((number + 1) * period)

    def abstract_state(self) -> State:
        return abstract_state(self.model, self.tx, self.config, self.mesh)


def prepare_run(config: Config) -> Run:
    """Refuses, before anything is compiled, whatever could not train: raises InputError."""
    check(config)
    check_devices(config, jax.device_count())
    if "float64" in (config.model.compute_dtype, config.model.param_dtype) and not jax.config.read(
        "jax_enable_x64"
    ):
        raise InputError(
            "float64 in model.dtype or model.param_dtype: set JAX_ENABLE_X64=1 in the environment, or use float32"
        )
    data = config.data
    train, evaluation = open_or_prepare(
        data.name, (data.train_split, data.eval_split), data.source, data.data_dir, data.bad_images
    )
    if train.classes != evaluation.classes:
        raise InputError(
            f"{train.name} and {evaluation.name} have other classes: they must be splits of one dataset"
        )
    if config.train.wandb and importlib.util.find_spec("wandb") is None:
        raise InputError(
            f"train.wandb={config.train.wandb!r} needs the package wandb: pip install wandb, or leave it out"
        )
    run = Run(config, train, evaluation)
    if data.resident:
        require_resident(train, data.image_size)
        require_resident(evaluation, data.eval_size)
    if (last := run.steps * config.train.batch_size) >= 2**32:
        raise InputError(
            f"{last:,} samples in all: positions are 32 bits wide; lower train.epochs or train.steps"
        )
    return run


def training_transform(run: Run, step: int) -> decode.Transform:
    """What makes the pictures of a step, in the size of its epoch."""
    config = run.config
    data, size = config.data, config.data.image_size
    for epoch, side in data.progressive_sizes:
        if step >= round(epoch * run.steps_per_epoch):
            size = side
    if data.crop == "centre":
        return decode.CentreCrop(size, size, data.interpolation)
    return decode.RandomResizedCrop(
        size, config.train.seed, data.crop_scale, data.crop_ratio, data.crop_interpolation
    )


@contextlib.contextmanager
def feed(
    run: Run, first: int, say: Callable[[str], None]
) -> Iterator[tuple[Iterator[Any], Loader | None]]:
    """What the step takes: the loader's batches, or the whole dataset again and again where it is on the devices. `say` is told of skipped images."""
    config, data = run.config, run.config.data
    if data.resident:
        yield (
            itertools.repeat(
                resident(
                    run.train, training_transform(run, 0), replicated(run.mesh), run.speed.threads
                )
            ),
            None,
        )
        return

    transform = functools.partial(training_transform, run)
    rows = training_rows(
        len(run.train),
        config.train.batch_size,
        config.train.seed,
        first,
        run.steps,
        transform,
        data.repeats,
    )
    with Loader(run.train, rows, split(run.mesh), run.speed, data.bad_images, say) as loader:
        yield iter(loader), loader
