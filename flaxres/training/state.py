"""The state that training carries from step to step, and its initial value."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh

from flaxres.config.schema import Config
from flaxres.data.order import Seed
from flaxres.training.mesh import replicated
from flaxres.training.xla import options_of_one_call

# What random numbers are for. Append new ones: the numbers of runs must not change.
INIT, AUGMENT, DROPOUT, MIX = range(4)
FIRST_SCALE = 2.0**16


def purpose(seed: Seed, number: int) -> jax.Array:
    """Returns the root key of one purpose, so that no two of them draw the same numbers."""
    return jax.random.fold_in(jax.random.key(seed), number)


@flax.struct.dataclass
class State:
    """Everything that a step changes.

    Attributes:
      step: () int32, the number of finished steps. It is also the state of the input: the next
        sample is at position `step * batch_size`.
      params: the parameters.
      batch_stats: the running statistics.
      opt_state: the optimizer's state.
      ema: moving averages of `params` and `batch_stats`; {} without `train.ema_decay`.
      loss_scale: `scale` () float32 and `good` () int32, the steps since the scale last changed;
        {} in other dtypes than float16.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: dict[str, Any] = flax.struct.field(default_factory=dict)
    loss_scale: dict[str, jax.Array] = flax.struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """The variables that the step trains."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def eval_variables(self) -> dict[str, Any]:
        """The variables to evaluate and export: the moving averages where there are any."""
        return self.ema or self.variables


def random_variables(model: nn.Module, config: Config, seed: Seed) -> Any:
    """Returns the randomly initialised variables of a network."""
    size = config.data.image_size
    return model.init(purpose(seed, INIT), jnp.zeros((1, size, size, 3), jnp.float32))


def initial_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    config: Config,
    seed: Seed,
    variables: Any = None,
) -> State:
    """Returns the state at step 0, to be traced; `variables` replace random ones."""
    if variables is None:
        variables = random_variables(model, config, seed)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    ema, scale = {}, {}
    if config.train.ema_decay:
        ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
    if config.model.compute_dtype == "float16":
        scale = {
            "scale": jnp.asarray(FIRST_SCALE, jnp.float32),
            "good": jnp.zeros((), jnp.int32),
        }
    return State(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params), ema, scale)


def create_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    config: Config,
    mesh: Mesh,
    variables: Any = None,
) -> State:
    """Computes the state at step 0 where it will live, with no copy on the host or one device."""

    def create(seed: jax.Array, variables: Any) -> State:
        return initial_state(model, tx, config, seed, variables)

    options = options_of_one_call(mesh)
    created = jax.jit(create, out_shardings=replicated(mesh), compiler_options=options)
    state: State = created(np.uint32(config.train.seed), variables)
    return state


def abstract_state(
    model: nn.Module, tx: optax.GradientTransformation, config: Config, mesh: Mesh
) -> State:
    """Returns the shapes, dtypes and shardings of the state, with nothing computed."""
    shapes = jax.eval_shape(lambda: initial_state(model, tx, config, config.train.seed))
    state: State = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)),
        shapes,
    )
    return state
