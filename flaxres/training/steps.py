"""The training step and the evaluation step: pure functions of a state and a batch, compiled once each for a mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.typing import Dtype
from jax import lax
from jax.sharding import Mesh

from flaxres.data import augment, autoaugment
from flaxres.data.order import step_positions, training_ids
from flaxres.models.network import Network
from flaxres.training.config import Config
from flaxres.training.mesh import replicated, split
from flaxres.training.state import AUGMENT, DROPOUT, MIX, State, purpose

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def smooth_targets(labels: jax.Array, classes: int, smoothing: float, dtype: Dtype) -> jax.Array:
    """(N,) labels -> (N, classes) probabilities; label smoothing as in Szegedy et al. 2016, section 7."""
    return optax.smooth_labels(jax.nn.one_hot(labels, classes, dtype=dtype), smoothing)


def pictures(config: Config, batch: Batch) -> jax.Array:
    """The uint8 batch as training sees it before pictures are mixed: augmented by keys of its samples' positions, and normalised."""
    data, augment_, dtype = config.data, config.augment, jnp.promote_types(jnp.float32, config.model.dtype)
    images, keys = batch["image"], augment.sample_keys(purpose(config.train.seed, AUGMENT), batch["position"])
    images = augment.random_shift(keys, images, augment_.shift)
    if augment_.flip:
        images = augment.random_flip(keys, images)
    images = augment.color_jitter(keys, images, augment_.color_jitter)
    if augment_.auto is not None:
        policy = autoaugment.policy(augment_.auto)
        # timm fills with the mean colour, torchvision with black.
        mean = round(255 * data.mean[0]), round(255 * data.mean[1]), round(255 * data.mean[2])
        images = augment.auto_augment(keys, images, policy, mean if isinstance(policy, autoaugment.RandAugment) else (0, 0, 0))
    images = augment.normalise(images, data.mean, data.std, dtype)
    images = augment.random_erasing(keys, images, augment_.erase, augment_.erase_area, augment_.erase_ratio, augment_.erase_fill)
    return augment.cutout(keys, images, augment_.cutout)


def inputs(config: Config, batch: Batch, step: jax.Array, classes: int) -> tuple[jax.Array, jax.Array]:
    """What the network and the loss see of a batch in training: (N, S, S, 3) in the model's dtype, and (N, classes) targets."""
    images = pictures(config, batch)
    targets = smooth_targets(batch["label"], classes, config.optim.label_smoothing, images.dtype)
    settings, key = config.augment, purpose(config.train.seed, MIX)
    keys = jax.random.fold_in(key, step) if settings.mix_per == "batch" else augment.sample_keys(key, batch["position"])
    images, targets = augment.mix(keys, images, targets, settings.mixup, settings.cutmix, settings.mix_probability, settings.mix_switch)
    return images.astype(config.model.dtype), targets


def train_step(
    config: Config, model: Network, tx: optax.GradientTransformation, schedule: optax.Schedule
) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """`(state, batch) -> (state, metrics)`. Metrics: `loss`, `top1` in [0, 1] of the augmented batch, `gradient_norm`, `learning_rate`, `finite`.

    A step whose loss or gradient is not finite changes neither parameters, statistics nor optimizer. With `train.non_finite="stop"` it does not count
    either: the state then waits for its batch again, and later ones, which are not its own, leave it alone.
    """

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        images, targets = inputs(config, batch, state.step, model.num_classes)
        dropout = jax.random.fold_in(purpose(config.train.seed, DROPOUT), state.step)

        def loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, new = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": dropout})
            losses = optax.softmax_cross_entropy(logits, targets.astype(logits.dtype))
            if config.train.non_finite == "stop":
                losses = jnp.where(batch["position"] == step_positions(state.step, len(losses)), losses, jnp.nan)
            return losses.mean(), (logits, new["batch_stats"])

        (value, (logits, batch_stats)), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        stops = config.train.non_finite == "stop"
        kept = (state.params, state.batch_stats, state.opt_state)

        def chosen(new: jax.Array, old: jax.Array) -> jax.Array:
            # The optimizer's own counts of steps, which its schedule reads, go on with the run: integers, where all else is floats.
            return new if not stops and jnp.issubdtype(new.dtype, jnp.integer) else jnp.where(finite, new, old)

        params, batch_stats, opt_state = jax.tree.map(chosen, (params, batch_stats, opt_state), kept)
        counted = finite if stops else True
        metrics = {
            "loss": value,
            "top1": (logits.argmax(-1) == targets.argmax(-1)).mean(dtype=jnp.float32),
            "gradient_norm": norm,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "finite": finite.astype(jnp.float32),
        }
        return State(state.step + jnp.asarray(counted, jnp.int32), params, batch_stats, opt_state), metrics

    return step


def resident_step(config: Config, step: Callable[[State, Batch], tuple[State, Metrics]], mesh: Mesh) -> Callable[..., tuple[State, Metrics]]:
    """`step` fed from a dataset that is on the devices: `(state, dataset) -> (state, metrics)`, the same samples as the loader gives."""

    def fed(state: State, dataset: Batch) -> tuple[State, Metrics]:
        size, batch_size = dataset["label"].shape[0], config.train.batch_size
        positions = lax.with_sharding_constraint(step_positions(state.step, batch_size), split(mesh))
        ids = training_ids(positions, size, config.train.seed, batch_size, config.data.repeats)
        return step(state, {"image": dataset["image"][ids], "label": dataset["label"][ids], "position": positions})

    return fed


def repeated(step: Callable[[State, Batch], tuple[State, Metrics]], most: int) -> Callable[..., tuple[State, Metrics]]:
    """`(state, dataset, count) -> (state, metrics)`: `count <= most` steps in one dispatch; metrics are (most,), of which `count` are filled.

    The count is no constant of the program, so that however a run is cut, by saves or by a kill, each step is the same code and gives the same bits.
    """

    def steps(state: State, dataset: Batch, count: jax.Array) -> tuple[State, Metrics]:
        shapes = jax.eval_shape(step, state, dataset)[1]
        empty = jax.tree.map(lambda leaf: jnp.zeros((most, *leaf.shape), leaf.dtype), shapes)

        def one(i: jax.Array, carry: tuple[State, Metrics]) -> tuple[State, Metrics]:
            state, values = step(carry[0], dataset)
            return state, jax.tree.map(lambda all_, value: all_.at[i].set(value), carry[1], values)

        return lax.fori_loop(0, count, one, (state, empty))

    return steps


def steps_per_dispatch(config: Config) -> int:
    """How many steps the device runs by itself. XLA's CPU loops leave convolution gradients to naive code (jax issue 12868): there it is one."""
    if not config.data.resident:
        return 1
    return config.train.steps_per_dispatch or (1 if jax.default_backend() == "cpu" else 16)


def eval_step(config: Config, model: Network) -> Callable[[Any, Batch], Metrics]:
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
            "loss": (weights * optax.softmax_cross_entropy_with_integer_labels(logits, labels)).sum(),
            "top1": (weights * (rank < 1)).sum(),
            "top5": (weights * (rank < 5)).sum(),
            "examples": weights.sum(),
        }

    return step


def compiled_train_step(config: Config, model: Network, tx: optax.GradientTransformation, schedule: optax.Schedule, mesh: Mesh) -> Any:
    """The jitted step over `mesh` with its state donated. It takes a batch that is split over `data`; where the data are resident, the whole dataset,
    and the number of steps too where `steps_per_dispatch` is more than one.
    """
    step: Callable[..., Any] = train_step(config, model, tx, schedule)
    whole = replicated(mesh)
    feeds: tuple[Any, ...] = (split(mesh),)
    if config.data.resident:
        step, feeds = resident_step(config, step, mesh), (whole,)
        if (most := steps_per_dispatch(config)) > 1:
            step, feeds = repeated(step, most), (whole, whole)
    return jax.jit(step, donate_argnums=0, in_shardings=(whole, *feeds), out_shardings=(whole, whole))


def compiled_eval_step(config: Config, model: Network, mesh: Mesh) -> Any:
    whole = replicated(mesh)
    return jax.jit(eval_step(config, model), in_shardings=(whole, split(mesh)), out_shardings=whole)
