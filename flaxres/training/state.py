"""What training carries from step to step, and its birth."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from flaxres.config.schema import Config
from flaxres.training.mesh import replicated

INIT, AUGMENT, DROPOUT, MIX = range(4)
FIRST_SCALE = 2.0**16


def purpose(seed: int, number: int) -> jax.Array:
    """The root key of one purpose, so that no two of them draw the same numbers."""
    return jax.random.fold_in(jax.random.key(seed), number)


@flax.struct.dataclass
class State:
    """`step` () int32 counts finished steps, and with the batch size is also the state of the input: the next sample is `step * batch_size`.

    `ema` holds the moving averages of `params` and `batch_stats`, and `loss_scale` `scale` () and `good` (), the steps since it last changed; each is
    {} where the run has none.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: dict[str, Any] = flax.struct.field(default_factory=dict)
    loss_scale: dict[str, jax.Array] = flax.struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """What the step trains."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def answer(self) -> dict[str, Any]:
        """What the run is for: the averages where there are any."""
        return self.ema or self.variables


def born(model: nn.Module, config: Config) -> Any:
    """Random variables, by the seed."""
    size = config.data.image_size
    return model.init(purpose(config.train.seed, INIT), jnp.zeros((1, size, size, 3), jnp.float32))


def birth(
    model: nn.Module, tx: optax.GradientTransformation, config: Config, variables: Any = None
) -> State:
    """The state at step 0, to be traced; `variables` are those to start from in place of random ones."""
    if variables is None:
        variables = born(model, config)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    ema = (
        jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
        if config.train.ema_decay
        else {}
    )
    half = config.model.compute_dtype == "float16"
    scale = (
        {"scale": jnp.asarray(FIRST_SCALE, jnp.float32), "good": jnp.zeros((), jnp.int32)}
        if half
        else {}
    )
    return State(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params), ema, scale)


def create_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    config: Config,
    mesh: Mesh,
    variables: Any = None,
) -> State:
    """The state at step 0, computed where it will live: no copy is made on the host or on one device first."""
    return jax.jit(
        lambda variables: birth(model, tx, config, variables), out_shardings=replicated(mesh)
    )(variables)


def abstract_state(
    model: nn.Module, tx: optax.GradientTransformation, config: Config, mesh: Mesh
) -> State:
    """The shapes, dtypes and shardings of the state, with nothing computed."""
    shapes = jax.eval_shape(lambda: birth(model, tx, config))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)), shapes
    )
