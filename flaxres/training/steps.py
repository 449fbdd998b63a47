"""The training step and the evaluation step: pure functions of a state and a batch."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from flaxres.config.schema import Config, DataConfig, TrainConfig
from flaxres.data import augment
from flaxres.data.balance import Balance
from flaxres.data.order import step_positions
from flaxres.models.network import Network
from flaxres.ops.devices import dividing
from flaxres.training.augmentation import Batch, inputs
from flaxres.training.dispatch import repeated, resident_step, steps_per_dispatch
from flaxres.training.gradients import Gradients, accumulated, gradients, sharpness_aware
from flaxres.training.losses import probabilities
from flaxres.training.mesh import replicated, split
from flaxres.training.state import DROPOUT, State, purpose
from flaxres.training.xla import compiler_options

Metrics = dict[str, jax.Array]
SCALE_GROWS_AFTER = 2000


def train_step(
    config: Config,
    model: Network,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    steps_per_epoch: float = 1.0,
    teacher: Network | None = None,
    class_weights: Float[np.ndarray, " classes"] | None = None,
) -> Callable[..., tuple[State, Metrics]]:
    """Returns `(state, seed, batch) -> (state, metrics)`; a teacher's variables come last.

    Metrics: `loss`, `top1` in [0, 1] of the augmented batch, `gradient_norm`, `learning_rate`,
    `finite`, and in float16 `loss_scale`.

    A step whose loss or gradient is not finite, or whose loss is above `train.loss_limit`, changes
    neither parameters, statistics, averages nor optimizer. With `train.non_finite="stop"` it does
    not count either: the state waits for its batch again, and later batches, which are not the
    expected one, leave it alone. In float16 it is an overflow: it counts, and the loss scale is
    halved. At a scale of 1 it is treated as in other dtypes.

    Args:
      config: the settings of the run.
      model: the network.
      tx: the optimizer.
      schedule: the learning rate by step, for the metrics.
      steps_per_epoch: may be fractional.
      teacher: the network that is distilled from.
      class_weights: weights of the classes in the loss; None weighs all alike.
    """
    size = round(steps_per_epoch * config.train.batch_size)
    batch_gradients = _batch_gradients(config, model, teacher, class_weights)

    def step(state: State, seed: jax.Array, batch: Batch, *teacher_variables: Any) -> Any:
        images, targets = inputs(config, batch, seed, size, state.step, model.num_classes)
        key = jax.random.fold_in(purpose(seed, DROPOUT), state.step)
        fed = {"image": images, "target": targets, "position": batch["position"]}
        fed["expected"] = step_positions(state.step, len(images))
        result = batch_gradients(state, fed, *teacher_variables, key=key)
        updates, opt_state = tx.update(result.gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norm = optax.tree.norm(result.gradients)
        verdict = _judged(config.train, state, result.loss, norm, fed)
        proposed = dataclasses.replace(
            state, params=params, batch_stats=result.batch_stats, opt_state=opt_state
        )
        new = _accepted(config.train, state, proposed, verdict, steps_per_epoch)
        metrics = {
            "loss": result.loss,
            "top1": _top1(result.logits, targets, config.data.multi_label),
            "gradient_norm": norm,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "finite": (verdict.sound | verdict.overflow).astype(jnp.float32),
        }
        if state.loss_scale:
            metrics["loss_scale"] = state.loss_scale["scale"]
        return new, metrics

    return step


def _top1(
    logits: Float[Array, "n classes"], targets: Float[Array, "n classes"], multi_label: bool
) -> Float[Array, ""]:
    """Returns the share of images whose likeliest class is the target, or one of several labels.

    Images without a label don't count.
    """
    likeliest = logits.argmax(-1)
    if not multi_label:
        return (likeliest == targets.argmax(-1)).mean(dtype=jnp.float32)
    most = targets.max(-1)
    right = (most > 0) & (jnp.take_along_axis(targets, likeliest[:, None], 1)[:, 0] >= most)
    return right.sum(dtype=jnp.float32) / jnp.maximum((most > 0).sum(dtype=jnp.float32), 1)


def _batch_gradients(
    config: Config,
    model: Network,
    teacher: Network | None,
    class_weights: Float[np.ndarray, " classes"] | None,
) -> Callable[..., Gradients]:
    """Returns `(state, batch, [teacher_variables], key=key) -> Gradients` of a whole batch."""
    gradients_of = gradients(config, model, teacher, class_weights)

    def compute(
        state: State, batch: Batch, teacher_variables: Any = None, *, key: jax.Array
    ) -> Gradients:
        def gradients_at(params: Any) -> Gradients:
            def compute_part(part: Batch, key: jax.Array) -> Gradients:
                return gradients_of(params, state, part, teacher_variables, key)

            return accumulated(config, compute_part, batch, key)

        if config.optim.sam_rho:
            return sharpness_aware(config.optim, gradients_at, state.params, state.step)
        return gradients_at(state.params)

    return compute


class _Verdict(NamedTuple):
    """Decisions about a step, () bool each.

    Attributes:
      finite: the loss and the gradient are finite.
      sound: the step changes the state.
      overflow: the loss scale was too high for float16.
      counted: the number of steps goes up.
    """

    finite: jax.Array
    sound: jax.Array
    overflow: jax.Array
    counted: jax.Array


def _judged(
    train: TrainConfig, state: State, loss: jax.Array, norm: jax.Array, batch: Batch
) -> _Verdict:
    """Decides about a step with this loss and this norm of the gradient."""
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    sound = finite & (loss <= train.loss_limit) if train.loss_limit else finite
    overflow = jnp.asarray(False)
    if state.loss_scale:
        expected = (batch["position"] == batch["expected"]).all()
        overflow = expected & ~finite & (state.loss_scale["scale"] > 1)
    counted = sound | overflow if train.non_finite == "stop" else jnp.asarray(True)
    return _Verdict(finite, sound, overflow, counted)


def _accepted(
    train: TrainConfig, old: State, new: State, verdict: _Verdict, steps_per_epoch: float
) -> State:
    """Returns the state after a step: `new` with its averages where it is sound, else `old`."""

    def select(new: Any, old: Any) -> Any:
        # The count that the schedule reads is the run's, not the optimizer's.
        is_count = isinstance(new, optax.ScaleByScheduleState)
        taken = verdict.counted if is_count else verdict.sound
        return jax.tree.map(lambda a, b: jnp.where(taken, a, b), new, old)

    number = old.step + jnp.asarray(verdict.counted, jnp.int32)
    ema = moving_average(train, old.ema, new.variables, number, steps_per_epoch)
    scale = rescaled(old.loss_scale, verdict.finite)
    scale = jax.tree.map(lambda a, b: jnp.where(verdict.counted, a, b), scale, old.loss_scale)
    proposed = (new.params, new.batch_stats, new.opt_state, ema)
    current = (old.params, old.batch_stats, old.opt_state, old.ema)
    chosen = jax.tree.map(
        select,
        proposed,
        current,
        is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState),
    )
    params, batch_stats, opt_state, ema = chosen
    return State(number, params, batch_stats, opt_state, ema, scale)


def moving_average(
    train: TrainConfig, ema: Any, variables: Any, step: jax.Array, steps_per_epoch: float
) -> Any:
    """Returns the exponential moving average after step number `step`; {} where there is none.

    It is a copy of the variables until `train.ema_start_epochs`, then updated in every
    `train.ema_every`-th step.
    """
    if not ema:
        return {}
    begun = step > round(train.ema_start_epochs * steps_per_epoch)
    due = step % train.ema_every == 0
    decay = jnp.where(begun, jnp.where(due, train.ema_decay, 1.0), 0.0)

    def average(old: jax.Array, new: jax.Array) -> jax.Array:
        return old * decay.astype(old.dtype) + new * (1 - decay).astype(old.dtype)

    return jax.tree.map(average, ema, variables)


def rescaled(loss_scale: dict[str, jax.Array], finite: jax.Array) -> dict[str, jax.Array]:
    """Halves the loss scale after an overflow, and doubles it after 2,000 steps without one.

    Micikevicius et al. 2018, section 3.2.
    """
    if not loss_scale:
        return loss_scale
    scale, good = loss_scale["scale"], jnp.where(finite, loss_scale["good"] + 1, 0)
    grows = good >= SCALE_GROWS_AFTER
    doubled = jnp.where(grows, 2 * scale, scale)
    scale = jnp.where(finite, doubled, jnp.maximum(scale / 2, 1))
    return {"scale": scale, "good": jnp.where(grows, 0, good)}


def evaluation_views(
    images: Float[Array, "n h w c"], data: DataConfig
) -> list[tuple[float, Float[Array, "n h w c"]]]:
    """Returns the views of the images whose logits are averaged, with weights that add up to one.

    `data.eval_flip` adds the mirror images, `data.eval_shift` two diagonal shifts (Jordan 2024,
    section 3.5).
    """
    views = [(1.0, images)]
    if shift := data.eval_shift:
        height, width = images.shape[1:3]
        padded = jnp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), "reflect")
        views = [
            (0.5, images),
            *((0.25, padded[:, at : at + height, at : at + width]) for at in (0, 2 * shift)),
        ]
    if data.eval_flip:
        views = [
            (weight / 2, either) for weight, view in views for either in (view, view[:, :, ::-1])
        ]
    return views


def eval_outputs(
    data: DataConfig, model: Network, dtype: str, classes: Sequence[int] | None = None
) -> Callable[[Any, Batch], Metrics]:
    """Returns `(variables, batch) -> {"logits", "loss", "rank"}` of each row.

    `rank` is the number of classes that are at least as likely as the label, without the label.
    With `data.multi_label` it is the number of classes that are no labels and at least as likely as
    the likeliest label, and the loss is the mean binary cross entropy of all classes.

    Args:
      data: gives the normalisation and the views.
      model: the network.
      dtype: of the computation.
      classes: the classes to choose from, which the labels number; None is all of the network's.
    """

    def outputs(variables: Any, batch: Batch) -> Metrics:
        images = augment.normalise(batch["image"], data.mean, data.std, jnp.dtype(dtype))
        logits: Any = sum(
            weight * jnp.asarray(model.apply(variables, view))
            for weight, view in evaluation_views(images, data)
        )
        if classes is not None:
            logits = logits[:, jnp.asarray(classes)]
        labels = batch["label"]
        if data.multi_label:
            targets = labels.astype(bool)
            right = jnp.where(targets, logits, -jnp.inf).max(-1, keepdims=True)
            losses = optax.sigmoid_binary_cross_entropy(logits, labels.astype(logits.dtype))
            losses = losses.mean(-1)
        else:
            targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
            right = jnp.take_along_axis(logits, labels[:, None], 1)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        # The rank counts a tie against the label: a network whose logits are all equal or NaN
        # must not count as right.
        rank = (~(logits < right) & ~targets).sum(-1)
        return {"logits": logits, "loss": losses, "rank": rank}

    return outputs


def eval_step(data: DataConfig, model: Network, dtype: str) -> Callable[[Any, Batch], Metrics]:
    """Returns `(variables, batch) -> sums over the batch`, each row times its weight.

    The sums are `loss`, `top1`, `top5` and `examples`, () each.

    Args:
      data, model, dtype: as for `eval_outputs`.
    """
    outputs = eval_outputs(data, model, dtype)

    def step(variables: Any, batch: Batch) -> Metrics:
        rows, weights = outputs(variables, batch), batch["weight"]
        return {
            "loss": (weights * rows["loss"]).sum(),
            "top1": (weights * (rows["rank"] < 1)).sum(),
            "top5": (weights * (rows["rank"] < 5)).sum(),
            "examples": weights.sum(),
        }

    return step


def eval_rows(
    data: DataConfig, model: Network, dtype: str, classes: Sequence[int] | None = None
) -> Callable[[Any, Batch], Metrics]:
    """Returns `(variables, batch) -> rows`: what an evaluation knows of each image.

    The rows are `position`, `label`, `weight`, `loss`, `rank` and `probabilities`, (B,) each but
    the last, (B, K), and with `data.multi_label` the labels.

    Args:
      data, model, dtype, classes: as for `eval_outputs`.
    """
    outputs = eval_outputs(data, model, dtype, classes)

    def step(variables: Any, batch: Batch) -> Metrics:
        rows = outputs(variables, batch)
        logits = rows["logits"]
        exact = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return {
            **{name: batch[name] for name in ("position", "label", "weight")},
            **{name: rows[name] for name in ("loss", "rank")},
            "probabilities": probabilities(exact, data.multi_label),
        }

    return step


def compiled_train_step(
    config: Config,
    model: Network,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    steps_per_epoch: float = 1.0,
    teacher: Network | None = None,
    class_weights: Float[np.ndarray, " classes"] | None = None,
    balance: Balance | None = None,
) -> Any:
    """Returns the jitted training step over `mesh`, which donates its state; see `train_step`.

    After the state it takes the seed, () uint32, so that one program serves every seed, and a batch
    that is split over the axis `data`. Where the dataset is resident it takes the whole dataset
    instead, of which `balance` chooses the samples, and the number of steps too where
    `steps_per_dispatch` is more than one. The variables of a teacher come last.
    """
    step: Callable[..., Any] = train_step(
        config, model, tx, schedule, steps_per_epoch, teacher, class_weights
    )
    whole = replicated(mesh)
    feeds: tuple[Any, ...] = (split(mesh),)
    if config.data.resident:
        step, feeds = resident_step(config, step, mesh, balance), (whole,)
        if (most := steps_per_dispatch(config)) > 1:
            step, feeds = repeated(step, most), (whole, whole)
    if teacher is not None:
        feeds += (whole,)
    options = compiler_options(mesh, config.train.deterministic)
    return jax.jit(
        dividing(step, mesh),
        donate_argnums=0,
        in_shardings=(whole, whole, *feeds),
        out_shardings=(whole, whole),
        compiler_options=options,
    )


def compiled_eval_step(
    config: Config,
    model: Network,
    mesh: Mesh,
    step: Callable[..., Callable[[Any, Batch], Metrics]] = eval_step,
) -> Any:
    """Returns the jitted evaluation step over `mesh`: see `eval_step` and `eval_rows`."""
    whole, options = replicated(mesh), compiler_options(mesh, config.train.deterministic)
    compute = step(config.data, model, config.model.compute_dtype)
    return jax.jit(
        dividing(compute, mesh),
        in_shardings=(whole, split(mesh)),
        out_shardings=whole,
        compiler_options=options,
    )
