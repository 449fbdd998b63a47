"""What training carries from step to step, and its birth."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from flaxres.training.mesh import replicated

INIT, AUGMENT, DROPOUT, MIX = range(4)


def purpose(seed: int, number: int) -> jax.Array:
    """The root key of one purpose, so that no two of them draw the same numbers."""
    return jax.random.fold_in(jax.random.key(seed), number)


@flax.struct.dataclass
class State:
    """`step` () int32 counts finished steps, and with the batch size is also the state of the input: the next sample is `step * batch_size`."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState

    @property
    def variables(self) -> dict[str, Any]:
        return {"params": self.params, "batch_stats": self.batch_stats}


def birth(model: nn.Module, tx: optax.GradientTransformation, seed: int, image_size: int) -> State:
    """The state at step 0, to be traced."""
    variables = model.init(purpose(seed, INIT), jnp.zeros((1, image_size, image_size, 3), jnp.float32))
    params = variables["params"]
    return State(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), tx.init(params))


def create_state(model: nn.Module, tx: optax.GradientTransformation, seed: int, image_size: int, mesh: Mesh) -> State:
    """The state at step 0, computed where it will live: no copy is made on the host or on one device first."""
    return jax.jit(lambda: birth(model, tx, seed, image_size), out_shardings=replicated(mesh))()


def abstract_state(model: nn.Module, tx: optax.GradientTransformation, image_size: int, mesh: Mesh) -> State:
    """The shapes, dtypes and shardings of the state, with nothing computed."""
    shapes = jax.eval_shape(lambda: birth(model, tx, 0, image_size))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)), shapes)
