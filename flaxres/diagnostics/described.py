"""Runs whose datasets need not be there, to compile their steps and to draw their schedules."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int64

from flaxres.config.check import check
from flaxres.config.schema import Config
from flaxres.training.dispatch import steps_per_dispatch
from flaxres.training.evaluation import label_shape
from flaxres.training.mesh import replicated, split
from flaxres.training.run import Run, open_data

# Training images, evaluation images, classes.
KNOWN = {
    "imagenet2012": (1_281_167, 50_000, 1000),
    "cifar10": (50_000, 10_000, 10),
    "digits": (1_297, 500, 10),
}


@dataclasses.dataclass(frozen=True)
class Described:
    """A split that has a size and classes, but no records."""

    name: str
    size: int
    classes: tuple[str, ...]
    label_sets: None = None

    def __len__(self) -> int:
        return self.size

    @property
    def label_range(self) -> int:
        """The number of different labels, as of a `Source`."""
        return len(self.classes)

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """Labels of classes of the same size, for `optim.class_balance`."""
        return np.arange(self.size) % len(self.classes)


def described_run(config: Config) -> Run:
    """Returns the run of a config; known datasets are described, others opened.

    Raises:
      InputError: the config could not train, or a dataset is neither known nor there.
    """
    check(config)
    data: Any = config.data
    if data.name not in KNOWN or "[" in data.train_split + data.eval_split:
        splits = (data.train_split, data.eval_split)
        opened = open_data(data, splits)
        return Run(config, opened[0], opened[1])
    train, evaluation, classes = KNOWN[data.name]
    names = tuple(str(number) for number in range(classes))
    first: Any = Described(f"{data.name}/{data.train_split}", train, names)
    second: Any = Described(f"{data.name}/{data.eval_split}", evaluation, names)
    return Run(config, first, second)


def lowered(run: Run) -> Any:
    """Returns the training step, lowered for the run's devices and batch, nothing allocated."""
    return run.train_step().lower(run.abstract_state(), *abstract_inputs(run))


def abstract_inputs(run: Run) -> tuple[Any, ...]:
    """Returns the shapes, dtypes and shardings of the step's arguments after the state."""
    data, batch = run.config.data, run.config.train.batch_size
    whole, divided = replicated(run.mesh), split(run.mesh)
    count, sharding = (len(run.train), whole) if data.resident else (batch, divided)

    def array(shape: tuple[int, ...], dtype: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    fed = {
        "image": array((count, data.image_size, data.image_size, 3), jnp.uint8, sharding),
        "label": array(*label_shape(run, count), sharding),
    }
    if not data.resident:
        fed["position"] = array((batch,), jnp.uint32, sharding)
        fed["weight"] = array((batch,), jnp.float32, sharding)
    several = data.resident and steps_per_dispatch(run.config) > 1
    steps = (array((), jnp.int32, whole),) if several else ()
    seed = array((), jnp.uint32, whole)
    if run.teacher is None:
        return (seed, fed, *steps)
    image = jnp.zeros((1, data.image_size, data.image_size, 3))
    shapes = jax.eval_shape(run.teacher.init, jax.random.key(0), image)
    teacher = jax.tree.map(lambda leaf: array(leaf.shape, leaf.dtype, whole), shapes)
    return (seed, fed, *steps, teacher)
