"""Runs whose datasets need not be there: enough to compile their steps and to draw their schedules."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from flaxres.config.check import check
from flaxres.config.schema import Config
from flaxres.data.datasets import open_or_prepare
from flaxres.training.mesh import replicated, split
from flaxres.training.run import Run
from flaxres.training.steps import steps_per_dispatch

# Images of training, of evaluation, and classes.
KNOWN = {
    "imagenet2012": (1_281_167, 50_000, 1000),
    "cifar10": (50_000, 10_000, 10),
    "digits": (1_297, 500, 10),
}


@dataclasses.dataclass(frozen=True)
class Described:
    """A split by its size and its classes."""

    name: str
    size: int
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return self.size


def described_run(config: Config) -> Run:
    """The run of a config, with known datasets described and others opened; raises InputError for a config that could not train."""
    check(config)
    data: Any = config.data
    if data.name not in KNOWN or "[" in data.train_split + data.eval_split:
        opened = open_or_prepare(
            data.name, (data.train_split, data.eval_split), data.source, data.data_dir
        )
        return Run(config, opened[0], opened[1])
    train, evaluation, classes = KNOWN[data.name]
    names = tuple(str(number) for number in range(classes))
    first: Any = Described(f"{data.name}/{data.train_split}", train, names)
    second: Any = Described(f"{data.name}/{data.eval_split}", evaluation, names)
    return Run(config, first, second)


def abstract_inputs(run: Run) -> tuple[Any, ...]:
    """The shapes of what the training step takes after the state."""
    data, batch = run.config.data, run.config.train.batch_size

    def array(shape: tuple[int, ...], dtype: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    lesson: tuple[Any, ...] = ()
    if run.teacher is not None:
        image = jnp.zeros((1, data.image_size, data.image_size, 3))
        shapes = jax.eval_shape(run.teacher.init, jax.random.key(0), image)
        lesson = (
            jax.tree.map(lambda leaf: array(leaf.shape, leaf.dtype, replicated(run.mesh)), shapes),
        )
    count, sharding = (
        (len(run.train), replicated(run.mesh)) if data.resident else (batch, split(run.mesh))
    )
    feed = {
        "image": array((count, data.image_size, data.image_size, 3), jnp.uint8, sharding),
        "label": array((count,), jnp.int32, sharding),
    }
    if data.resident:
        several = steps_per_dispatch(run.config) > 1
        return (feed, *((array((), jnp.int32, replicated(run.mesh)),) if several else ()), *lesson)
    return (
        feed
        | {
            "position": array((batch,), jnp.uint32, sharding),
            "weight": array((batch,), jnp.float32, sharding),
        },
        *lesson,
    )


def lowered(run: Run) -> Any:
    """The training step, lowered for the run's devices and real batch, nothing allocated."""
    return run.train_step().lower(run.abstract_state(), *abstract_inputs(run))
