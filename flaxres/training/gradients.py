"""Gradients of a batch: at once, in parts, or where the loss is highest nearby."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Float

from flaxres.config.schema import Config, OptimConfig
from flaxres.models.network import Network
from flaxres.training.augmentation import Batch
from flaxres.training.losses import distillation_losses, example_losses
from flaxres.training.state import State


class Gradients(NamedTuple):
    """The gradients of a batch, and what its forward pass leaves.

    Attributes:
      loss: mean over the examples, ().
      logits: (N, classes).
      batch_stats: the running statistics after the batch.
      gradients: in the structure of the parameters.
    """

    loss: jax.Array
    logits: jax.Array
    batch_stats: Any
    gradients: Any


def gradients(
    config: Config,
    model: Network,
    teacher: Network | None,
    class_weights: Float[np.ndarray, " classes"] | None = None,
) -> Callable[[Any, State, Batch, Any, jax.Array], Gradients]:
    """Returns `(params, state, batch, teacher_variables, key) -> Gradients`.

    Each class counts in the loss by its weight; None weighs all alike. The batch has `image` and
    `target` as `inputs` returns them, `position`, and the `expected` position. With
    `train.non_finite="stop"`, examples at other positions make the loss NaN.
    """
    optim, stops = config.optim, config.train.non_finite == "stop"

    def loss_and_aux(
        params: Any, state: State, batch: Batch, teacher_variables: Any, key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Any]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, new = model.apply(
            variables, batch["image"], train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )
        targets = batch["target"].astype(logits.dtype)
        losses = example_losses(optim, logits, targets, class_weights)
        if teacher is not None:
            teacher_logits: Any = teacher.apply(teacher_variables, batch["image"])
            teacher_logits = lax.stop_gradient(teacher_logits).astype(logits.dtype)
            distilled = distillation_losses(optim.distill_temperature, logits, teacher_logits)
            losses = (1 - optim.distill_alpha) * losses + optim.distill_alpha * distilled
        if stops:
            losses = jnp.where(batch["position"] == batch["expected"], losses, jnp.nan)
        loss = losses.mean()
        return loss * state.loss_scale.get("scale", 1), (loss, logits, new.get("batch_stats", {}))

    def compute(
        params: Any, state: State, batch: Batch, teacher_variables: Any, key: jax.Array
    ) -> Gradients:
        grad, (loss, logits, batch_stats) = jax.grad(loss_and_aux, has_aux=True)(
            params, state, batch, teacher_variables, key
        )
        if state.loss_scale:
            grad = jax.tree.map(lambda g: g / state.loss_scale["scale"], grad)
        return Gradients(loss, logits, batch_stats, grad)

    return compute


def accumulated(
    config: Config, compute: Callable[[Batch, jax.Array], Gradients], batch: Batch, key: jax.Array
) -> Gradients:
    """Computes the gradients in `train.accumulate` parts of the batch, one after another.

    A part takes every `accumulate`-th statistics group, so that the rows of a device stay on it.

    Args:
      config: the settings of the run.
      compute: returns the gradients of a part.
      batch: the whole batch.
      key: of dropout.

    Returns:
      The same as `compute` returns for the whole batch.
    """
    count, group = config.train.accumulate, config.model.bn_group or 1
    if count == 1:
        return compute(batch, key)

    def divide(array: jax.Array) -> jax.Array:
        groups = array.reshape(-1, count, group, *array.shape[1:])
        return groups.swapaxes(0, 1).reshape(count, -1, *array.shape[1:])

    def add(total: Any, part: Batch) -> tuple[Any, Any]:
        new = compute(part, jax.random.fold_in(key, part["index"]))
        outputs = new.loss, new.logits, new.batch_stats
        return jax.tree.map(jnp.add, total, new.gradients), outputs

    parts = {name: divide(array) for name, array in batch.items()}
    parts["index"] = jnp.arange(count)
    first = jax.tree.map(lambda array: array[0], parts)
    shapes = jax.eval_shape(compute, first, key).gradients
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    # XLA's CPU compiler leaves convolutions inside loops to naive code (jax issue 12868).
    unroll = jax.default_backend() == "cpu"
    total, (losses, logits, batch_stats) = lax.scan(add, zeros, parts, unroll=unroll)
    rows = logits.reshape(count, -1, group, logits.shape[-1]).swapaxes(0, 1)
    rows = rows.reshape(-1, logits.shape[-1])
    return Gradients(
        losses.mean(),
        rows,
        merged_statistics(batch_stats, config.model.bn_momentum),
        jax.tree.map(lambda g: g / count, total),
    )


def merged_statistics(parts: Any, momentum: float) -> Any:
    """Returns the running statistics after a batch from those after each of its parts.

    Args:
      parts: `batch_stats` whose arrays are stacked along a first axis, one entry a part.
      momentum: of the running statistics.

    Returns:
      `batch_stats` in which the variance between the parts' means is counted too.
    """

    def merge(node: Any) -> Any:
        if not (isinstance(node, dict) and node.keys() == {"mean", "var"}):
            return {name: merge(value) for name, value in node.items()}
        between = node["mean"].var(0) / (1 - momentum)
        return {"mean": node["mean"].mean(0), "var": node["var"].mean(0) + between}

    return merge(parts)


def sharpness_aware(
    optim: OptimConfig, gradients_at: Callable[[Any], Gradients], params: Any, step: jax.Array
) -> Gradients:
    """Returns the gradients where the loss is about highest within `optim.sam_rho`.

    Foret et al. 2021, eq. 2. Only every `optim.sam_every`-th step does it; the others return the
    gradients at the parameters.

    Args:
      optim: the optimizer's settings.
      gradients_at: returns the gradients at given parameters.
      params: the parameters.
      step: () int32, the number of steps that are finished.
    """

    def uphill(here: Gradients) -> Gradients:
        stride = optim.sam_rho / (optax.tree.norm(here.gradients) + 1e-12)
        there = gradients_at(jax.tree.map(lambda w, g: w + stride * g, params, here.gradients))
        return here._replace(gradients=there.gradients)

    here = gradients_at(params)
    if optim.sam_every == 1:
        return uphill(here)
    result: Gradients = lax.cond(step % optim.sam_every == 0, uphill, lambda here: here, here)
    return result
