"""The training step and the evaluation step: pure functions of a state and a batch, compiled once each for a mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh

from flaxres.data import augment
from flaxres.data.order import sample_ids
from flaxres.training.config import Config
from flaxres.training.mesh import replicated, split
from flaxres.training.state import AUGMENT, DROPOUT, State, purpose

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """(N, K) logits and (N,) labels -> (N,) losses, at least float32; label smoothing as in Szegedy et al. 2016, section 7."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def pictures(config: Config, batch: Batch) -> jax.Array:
    """The uint8 batch as the network sees it in training: augmented by keys of its samples' positions, then normalised."""
    images = batch["image"]
    keys = augment.sample_keys(purpose(config.train.seed, AUGMENT), batch["position"])
    if config.data.crop == "shift":
        images = augment.random_shift(keys, images, config.data.shift)
    if config.data.flip:
        images = augment.random_flip(keys, images)
    return augment.normalise(images, config.data.mean, config.data.std, jnp.dtype(config.model.dtype))


def train_step(
    config: Config, model: nn.Module, tx: optax.GradientTransformation, schedule: optax.Schedule
) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """`(state, batch) -> (state, metrics)`. Metrics: `loss`, `top1` in [0, 1] of the augmented batch, `gradient_norm`, `learning_rate`."""

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        images = pictures(config, batch)
        dropout = jax.random.fold_in(purpose(config.train.seed, DROPOUT), state.step)

        def loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, new = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": dropout})
            return cross_entropy(logits, batch["label"], config.optim.label_smoothing).mean(), (logits, new["batch_stats"])

        (value, (logits, batch_stats)), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": value,
            "top1": (logits.argmax(-1) == batch["label"]).mean(dtype=jnp.float32),
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        return State(state.step + 1, params, batch_stats, opt_state), metrics

    return step


def resident_step(config: Config, step: Callable[[State, Batch], tuple[State, Metrics]], mesh: Mesh) -> Callable[..., tuple[State, Metrics]]:
    """`step` fed from a dataset that is on the devices: `(state, dataset) -> (state, metrics)`, the same samples as the loader gives."""

    def fed(state: State, dataset: Batch) -> tuple[State, Metrics]:
        size = dataset["label"].shape[0]
        first = state.step.astype(jnp.uint32) * jnp.uint32(config.train.batch_size)
        positions = lax.with_sharding_constraint(first + jnp.arange(config.train.batch_size, dtype=jnp.uint32), split(mesh))
        ids = sample_ids(positions, size, config.train.seed)
        return step(state, {"image": dataset["image"][ids], "label": dataset["label"][ids], "position": positions})

    return fed


def eval_step(config: Config, model: nn.Module) -> Callable[[Any, Batch], Metrics]:
    """`(variables, batch) -> sums over the batch`, each row times its weight: `loss`, `top1`, `top5` and `examples`."""

    def step(variables: Any, batch: Batch) -> Metrics:
        images = augment.normalise(batch["image"], config.data.mean, config.data.std, jnp.dtype(config.model.dtype))
        logits: Any = model.apply(variables, images)
        labels, weights = batch["label"], batch["weight"]
        # The rank counts a tie against the label, so that a network of equal or NaN logits is not called right.
        right = jnp.take_along_axis(logits, labels[:, None], 1)
        others = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
        rank = (~(logits < right) & ~others).sum(-1)
        return {
            "loss": (weights * cross_entropy(logits, labels, 0.0)).sum(),
            "top1": (weights * (rank < 1)).sum(),
            "top5": (weights * (rank < 5)).sum(),
            "examples": weights.sum(),
        }

    return step


def compiled_train_step(config: Config, model: nn.Module, tx: optax.GradientTransformation, schedule: optax.Schedule, mesh: Mesh) -> Any:
    """The jitted step over `mesh` with its state donated; its batch is split over `data`, or is a whole dataset when resident."""
    step: Callable[..., Any] = train_step(config, model, tx, schedule)
    if config.data.resident:
        step, batch = resident_step(config, step, mesh), replicated(mesh)
    else:
        batch = split(mesh)
    whole = replicated(mesh)
    return jax.jit(step, donate_argnums=0, in_shardings=(whole, batch), out_shardings=(whole, whole))


def compiled_eval_step(config: Config, model: nn.Module, mesh: Mesh) -> Any:
    whole = replicated(mesh)
    return jax.jit(eval_step(config, model), in_shardings=(whole, split(mesh)), out_shardings=whole)
