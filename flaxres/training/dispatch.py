"""Steps fed from a dataset that lies on the devices, and several steps in one dispatch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from flaxres.config.schema import Config
from flaxres.data.balance import Balance
from flaxres.data.order import step_positions, training_ids
from flaxres.training.augmentation import Batch
from flaxres.training.mesh import split
from flaxres.training.state import State

Step = Callable[..., tuple[State, dict[str, jax.Array]]]


def steps_per_dispatch(config: Config) -> int:
    """Returns how many steps the device runs without the host.

    It is 1 on CPUs by default: XLA's CPU loops leave the gradients of convolutions to naive code
    (jax issue 12868).
    """
    if not config.data.resident:
        return 1
    return config.train.steps_per_dispatch or (1 if jax.default_backend() == "cpu" else 16)


def resident_step(config: Config, step: Step, mesh: Mesh, balance: Balance | None = None) -> Step:
    """Returns `step` fed from a dataset on the devices, `(state, seed, dataset) -> ...`.

    It takes the same samples as the loader gives; see `flaxres.data.order.training_ids`.
    """
    batch_size = config.train.batch_size

    def fed(state: State, seed: jax.Array, dataset: Batch, *teacher_variables: Any) -> Any:
        size = dataset["label"].shape[0]
        positions = step_positions(state.step, batch_size)
        positions = lax.with_sharding_constraint(positions, split(mesh))
        repeats = config.data.repeats
        ids = training_ids(positions, size, seed, batch_size, repeats, balance)
        batch = {
            "image": dataset["image"][ids],
            "label": dataset["label"][ids],
            "position": positions,
        }
        return step(state, seed, batch, *teacher_variables)

    return fed


def repeated(step: Step, most: int) -> Step:
    """Returns `(state, seed, dataset, count) -> (state, metrics)`: `count <= most` steps at once.

    Metrics are (most,), of which `count` are filled. The count is an argument, not a constant of
    the program: however saves or a kill cut a run, each step is the same code and gives the same
    bits.
    """

    def steps(
        state: State, seed: jax.Array, dataset: Batch, count: jax.Array, *teacher_variables: Any
    ) -> Any:
        shapes = jax.eval_shape(step, state, seed, dataset, *teacher_variables)[1]
        empty = jax.tree.map(lambda leaf: jnp.zeros((most, *leaf.shape), leaf.dtype), shapes)

        def one(i: jax.Array, carry: tuple[State, Any]) -> tuple[State, Any]:
            state, values = step(carry[0], seed, dataset, *teacher_variables)
            filled = jax.tree.map(lambda every, value: every.at[i].set(value), carry[1], values)
            return state, filled

        return lax.fori_loop(0, count, one, (state, empty))

    return steps
