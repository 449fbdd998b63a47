"""The training step and the evaluation step: pure functions of a state and a batch, compiled once each for a mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.typing import Dtype
from jax import lax
from jax.sharding import Mesh

from flaxres.config.schema import Config, DataConfig
from flaxres.data import augment, autoaugment
from flaxres.data.order import mirrored, step_positions, training_ids
from flaxres.models.network import Network
from flaxres.training.mesh import replicated, split
from flaxres.training.state import AUGMENT, DROPOUT, MIX, State, purpose
from flaxres.training.xla import compiler_options

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
SCALE_GROWS_AFTER = 2000


def smooth_targets(labels: jax.Array, classes: int, smoothing: float, dtype: Dtype) -> jax.Array:
    """(N,) labels -> (N, classes) probabilities; label smoothing as in Szegedy et al. 2016, section 7."""
    return optax.smooth_labels(jax.nn.one_hot(labels, classes, dtype=dtype), smoothing)


def pictures(config: Config, batch: Batch, size: int) -> jax.Array:
    """The uint8 batch as training sees it before pictures are mixed: augmented by keys of its samples' positions, and normalised.

    `size` is the number of records of an epoch.
    """
    data, augment_, dtype = (
        config.data,
        config.augment,
        jnp.promote_types(jnp.float32, config.model.compute_dtype),
    )
    images, keys = (
        batch["image"],
        augment.sample_keys(purpose(config.train.seed, AUGMENT), batch["position"]),
    )
    images = augment.random_shift(keys, images, augment_.shift)
    if augment_.flip_alternates:
        images = augment.flip_where(mirrored(batch["position"], size, config.train.seed), images)
    elif augment_.flip:
        images = augment.random_flip(keys, images)
    images = augment.color_jitter(keys, images, augment_.color_jitter)
    if augment_.auto is not None:
        policy = autoaugment.policy(augment_.auto)
        # timm fills with the mean colour, torchvision with black.
        mean = round(255 * data.mean[0]), round(255 * data.mean[1]), round(255 * data.mean[2])
        images = augment.auto_augment(
            keys, images, policy, mean if isinstance(policy, autoaugment.RandAugment) else (0, 0, 0)
        )
    images = augment.normalise(images, data.mean, data.std, dtype)
    images = augment.random_erasing(
        keys, images, augment_.erase, augment_.erase_area, augment_.erase_ratio, augment_.erase_fill
    )
    return augment.cutout(keys, images, augment_.cutout)


def inputs(
    config: Config, batch: Batch, size: int, step: jax.Array, classes: int
) -> tuple[jax.Array, jax.Array]:
    """What the network and the loss see of a batch in training: (N, S, S, 3) in the model's dtype, and (N, classes) targets."""
    images = pictures(config, batch, size)
    targets = smooth_targets(batch["label"], classes, config.optim.label_smoothing, images.dtype)
    settings, key = config.augment, purpose(config.train.seed, MIX)
    keys = (
        jax.random.fold_in(key, step)
        if settings.mix_per == "batch"
        else augment.sample_keys(key, batch["position"])
    )
    images, targets = augment.mix(
        keys,
        images,
        targets,
        settings.mixup,
        settings.cutmix,
        settings.mix_probability,
        settings.mix_switch,
    )
    return images.astype(config.model.compute_dtype), targets


def losses(config: Config, logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The loss of each example, `(N,)`, in nats."""
    optim = config.optim
    if optim.loss == "cross_entropy":
        return optax.softmax_cross_entropy(logits, targets)
    if optim.binary_threshold is not None:
        targets = (targets > optim.binary_threshold).astype(logits.dtype)
    each = optax.sigmoid_binary_cross_entropy(logits, targets)
    return each.mean(-1) if optim.loss == "binary" else each.sum(-1)


def distillation(config: Config, logits: jax.Array, teacher: jax.Array) -> jax.Array:
    """`T^2 KL(teacher || student)` of each example at temperature T (Hinton et al. 2015, section 2), `(N,)`."""
    hot = config.optim.distill_temperature
    return hot**2 * optax.kl_divergence(
        jax.nn.log_softmax(logits / hot), jax.nn.softmax(teacher / hot)
    )


Gradients = tuple[jax.Array, jax.Array, Any, Any]  # loss, logits, new statistics, gradients


def gradients(
    config: Config,
    model: Network,
    teacher: Network | None,
    params: Any,
    state: State,
    part: Batch,
    taught: Any,
    key: jax.Array,
) -> Gradients:
    """Of a batch or a part of it: `image` and `target` as `inputs` gives them, `position`, and the position that is `expected`."""

    def loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Any]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, new = model.apply(
            variables, part["image"], train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )
        each = losses(config, logits, part["target"].astype(logits.dtype))
        if teacher is not None:
            lesson: Any = teacher.apply(taught, part["image"])
            share = config.optim.distill_alpha
            each = (1 - share) * each + share * distillation(
                config, logits, lax.stop_gradient(lesson).astype(logits.dtype)
            )
        if config.train.non_finite == "stop":
            each = jnp.where(part["position"] == part["expected"], each, jnp.nan)
        value = each.mean()
        return value * state.loss_scale.get("scale", 1), (value, logits, new.get("batch_stats", {}))

    found, (value, logits, batch_stats) = jax.grad(loss, has_aux=True)(params)
    if state.loss_scale:
        found = jax.tree.map(lambda g: g / state.loss_scale["scale"], found)
    return value, logits, batch_stats, found


def accumulated(
    config: Config,
    one: Callable[[Batch, jax.Array], Gradients],
    batch: Batch,
    key: jax.Array,
    momentum: float,
) -> Gradients:
    """`one` over `train.accumulate` parts of the batch, one after another, combined into what the whole batch gives.

    A part takes every `accumulate`-th statistics group, so that the rows of a device stay on it.
    """
    count, group = config.train.accumulate, config.model.bn_group or 1
    if count == 1:
        return one(batch, key)
    parts = {
        name: array.reshape(-1, count, group, *array.shape[1:])
        .swapaxes(0, 1)
        .reshape(count, -1, *array.shape[1:])
        for name, array in batch.items()
    }
    parts["index"] = jnp.arange(count)

    def add(total: Any, part: Batch) -> tuple[Any, Any]:
        value, logits, batch_stats, found = one(part, jax.random.fold_in(key, part["index"]))
        return jax.tree.map(jnp.add, total, found), (value, logits, batch_stats)

    shapes = jax.eval_shape(one, jax.tree.map(lambda array: array[0], parts), key)[3]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    # XLA's CPU compiler leaves convolutions inside loops to naive code (jax issue 12868).
    total, (values, logits, batch_stats) = lax.scan(
        add, zeros, parts, unroll=jax.default_backend() == "cpu"
    )
    rows = (
        logits.reshape(count, -1, group, logits.shape[-1])
        .swapaxes(0, 1)
        .reshape(-1, logits.shape[-1])
    )
    return (
        values.mean(),
        rows,
        merged(batch_stats, momentum),
        jax.tree.map(lambda g: g / count, total),
    )


def merged(parts: Any, momentum: float) -> Any:
    """The running statistics after the whole batch, from those after each of its parts, stacked. The variance between the parts' means counts too."""

    def pair(found: Any) -> Any:
        if not (isinstance(found, dict) and found.keys() == {"mean", "var"}):
            return {name: pair(value) for name, value in found.items()}
        between = found["mean"].var(0) / (1 - momentum)
        return {"mean": found["mean"].mean(0), "var": found["var"].mean(0) + between}

    return pair(parts)


def averaged(
    config: Config, ema: Any, variables: Any, step: jax.Array, steps_per_epoch: float
) -> Any:
    """The moving average after step number `step`: a copy until `ema_start_epochs`, then updated in every `ema_every`-th step."""
    train = config.train
    begun, due = step > round(train.ema_start_epochs * steps_per_epoch), step % train.ema_every == 0
    decay = jnp.where(begun, jnp.where(due, train.ema_decay, 1.0), 0.0)
    return jax.tree.map(
        lambda old, new: old * decay.astype(old.dtype) + new * (1 - decay).astype(old.dtype),
        ema,
        variables,
    )


def rescaled(loss_scale: dict[str, jax.Array], finite: jax.Array) -> dict[str, jax.Array]:
    """Half the scale after an overflow, twice as much after 2,000 steps without one (Micikevicius et al. 2018, section 3.2)."""
    if not loss_scale:
        return loss_scale
    scale, good = loss_scale["scale"], jnp.where(finite, loss_scale["good"] + 1, 0)
    grows = good >= SCALE_GROWS_AFTER
    scale = jnp.where(finite, jnp.where(grows, 2 * scale, scale), jnp.maximum(scale / 2, 1))
    return {"scale": scale, "good": jnp.where(grows, 0, good)}


def train_step(
    config: Config,
    model: Network,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    steps_per_epoch: float = 1.0,
    teacher: Network | None = None,
) -> Callable[..., tuple[State, Metrics]]:
    """`(state, batch) -> (state, metrics)`, and with a teacher `(state, batch, its variables)`.

    Metrics: `loss`, `top1` in [0, 1] of the augmented batch, `gradient_norm`, `learning_rate`, `finite`, and in float16 `loss_scale`.

    A step whose loss or gradient is not finite, or whose loss is above `train.loss_limit`, changes neither parameters, statistics, averages nor
    optimizer. With `train.non_finite="stop"` it
    does not count either: the state then waits for its batch again, and later ones, which are not its own, leave it alone. In float16 it is an
    overflow: it counts, and the loss scale is halved; only at a scale of 1 is it what it is elsewhere.
    """

    size = round(steps_per_epoch * config.train.batch_size)

    def step(state: State, batch: Batch, *taught: Any) -> tuple[State, Metrics]:
        images, targets = inputs(config, batch, size, state.step, model.num_classes)
        key = jax.random.fold_in(purpose(config.train.seed, DROPOUT), state.step)
        expected = step_positions(state.step, len(images))
        seen = {
            "image": images,
            "target": targets,
            "position": batch["position"],
            "expected": expected,
        }

        lesson = taught[0] if taught else None

        def at(params: Any) -> Gradients:
            def one(part: Batch, key: jax.Array) -> Gradients:
                return gradients(config, model, teacher, params, state, part, lesson, key)

            return accumulated(config, one, seen, key, model.bn_momentum)

        value, logits, batch_stats, found = (
            sharpness_aware(config, at, state) if config.optim.sam_rho else at(state.params)
        )
        updates, opt_state = tx.update(found, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norm = optax.tree.norm(found)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        sound = finite & (value <= config.train.loss_limit) if config.train.loss_limit else finite
        own = (seen["position"] == expected).all() if state.loss_scale else True
        overflow = own & ~finite & (state.loss_scale["scale"] > 1) if state.loss_scale else False
        counted = sound | overflow if config.train.non_finite == "stop" else jnp.asarray(True)

        def chosen(new: Any, old: Any) -> Any:
            # The count that the schedule reads is the run's, not the optimizer's.
            went = counted if isinstance(new, optax.ScaleByScheduleState) else sound
            return jax.tree.map(lambda a, b: jnp.where(went, a, b), new, old)

        number = state.step + jnp.asarray(counted, jnp.int32)
        ema = (
            averaged(
                config,
                state.ema,
                {"params": params, "batch_stats": batch_stats},
                number,
                steps_per_epoch,
            )
            if state.ema
            else {}
        )
        loss_scale = jax.tree.map(
            lambda a, b: jnp.where(counted, a, b),
            rescaled(state.loss_scale, finite),
            state.loss_scale,
        )
        new, old = (
            (params, batch_stats, opt_state, ema),
            (state.params, state.batch_stats, state.opt_state, state.ema),
        )
        params, batch_stats, opt_state, ema = jax.tree.map(
            chosen, new, old, is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState)
        )
        metrics = {
            "loss": value,
            "top1": (logits.argmax(-1) == targets.argmax(-1)).mean(dtype=jnp.float32),
            "gradient_norm": norm,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "finite": (sound | overflow).astype(jnp.float32),
        }
        if state.loss_scale:
            metrics["loss_scale"] = state.loss_scale["scale"]
        return State(number, params, batch_stats, opt_state, ema, loss_scale), metrics

    return step


def sharpness_aware(config: Config, at: Callable[[Any], Gradients], state: State) -> Gradients:
    """The gradient where the loss is about highest within `sam_rho` (Foret et al. 2021, eq. 2), in every `sam_every`-th step."""

    def uphill(here: Gradients) -> Gradients:
        value, logits, batch_stats, found = here
        stride = config.optim.sam_rho / (optax.tree.norm(found) + 1e-12)
        return (
            value,
            logits,
            batch_stats,
            at(jax.tree.map(lambda w, g: w + stride * g, state.params, found))[3],
        )

    here = at(state.params)
    if config.optim.sam_every == 1:
        return uphill(here)
    return lax.cond(state.step % config.optim.sam_every == 0, uphill, lambda here: here, here)


def resident_step(
    config: Config, step: Callable[..., tuple[State, Metrics]], mesh: Mesh
) -> Callable[..., tuple[State, Metrics]]:
    """`step` fed from a dataset that is on the devices: `(state, dataset) -> (state, metrics)`, the same samples as the loader gives."""

    def fed(state: State, dataset: Batch, *taught: Any) -> tuple[State, Metrics]:
        size, batch_size = dataset["label"].shape[0], config.train.batch_size
        positions = lax.with_sharding_constraint(
            step_positions(state.step, batch_size), split(mesh)
        )
        ids = training_ids(positions, size, config.train.seed, batch_size, config.data.repeats)
        return step(
            state,
            {"image": dataset["image"][ids], "label": dataset["label"][ids], "position": positions},
            *taught,
        )

    return fed


def repeated(
    step: Callable[..., tuple[State, Metrics]], most: int
) -> Callable[..., tuple[State, Metrics]]:
    """`(state, dataset, count) -> (state, metrics)`: `count <= most` steps in one dispatch; metrics are (most,), of which `count` are filled.

    The count is no constant of the program, so that however a run is cut, by saves or by a kill, each step is the same code and gives the same bits.
    """

    def steps(
        state: State, dataset: Batch, count: jax.Array, *taught: Any
    ) -> tuple[State, Metrics]:
        shapes = jax.eval_shape(step, state, dataset, *taught)[1]
        empty = jax.tree.map(lambda leaf: jnp.zeros((most, *leaf.shape), leaf.dtype), shapes)

        def one(i: jax.Array, carry: tuple[State, Metrics]) -> tuple[State, Metrics]:
            state, values = step(carry[0], dataset, *taught)
            return state, jax.tree.map(lambda all_, value: all_.at[i].set(value), carry[1], values)

        return lax.fori_loop(0, count, one, (state, empty))

    return steps


def steps_per_dispatch(config: Config) -> int:
    """How many steps the device runs by itself. XLA's CPU loops leave convolution gradients to naive code (jax issue 12868): there it is one."""
    if not config.data.resident:
        return 1
    return config.train.steps_per_dispatch or (1 if jax.default_backend() == "cpu" else 16)


def evaluated_views(images: jax.Array, data: DataConfig) -> list[tuple[float, jax.Array]]:
    """The views of `(N, H, W, C)` images that are averaged, `(weight, images)` each; the weights add up to one."""
    views = [(1.0, images)]
    if far := data.eval_shift:
        height, width = images.shape[1:3]
        padded = jnp.pad(images, ((0, 0), (far, far), (far, far), (0, 0)), "reflect")
        views = [
            (0.5, images),
            *((0.25, padded[:, at : at + height, at : at + width]) for at in (0, 2 * far)),
        ]
    if data.eval_flip:
        views = [
            (weight / 2, either) for weight, view in views for either in (view, view[:, :, ::-1])
        ]
    return views


def eval_step(config: Config, model: Network) -> Callable[[Any, Batch], Metrics]:
    """`(variables, batch) -> sums over the batch`, each row times its weight: `loss`, `top1`, `top5` and `examples`."""

    def step(variables: Any, batch: Batch) -> Metrics:
        images = augment.normalise(
            batch["image"], config.data.mean, config.data.std, jnp.dtype(config.model.compute_dtype)
        )
        logits: Any = sum(
            weight * jnp.asarray(model.apply(variables, view))
            for weight, view in evaluated_views(images, config.data)
        )
        labels, weights = batch["label"], batch["weight"]
        # The rank counts a tie against the label, so that a network of equal or NaN logits is not called right.
        right = jnp.take_along_axis(logits, labels[:, None], 1)
        others = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
        rank = (~(logits < right) & ~others).sum(-1)
        return {
            "loss": (
                weights * optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            ).sum(),
            "top1": (weights * (rank < 1)).sum(),
            "top5": (weights * (rank < 5)).sum(),
            "examples": weights.sum(),
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
) -> Any:
    """The jitted step over `mesh` with its state donated. It takes a batch that is split over `data`; where the data are resident, the whole dataset,
    and the number of steps too where `steps_per_dispatch` is more than one; and last the teacher's variables, if there is one.
    """
    step: Callable[..., Any] = train_step(config, model, tx, schedule, steps_per_epoch, teacher)
    whole = replicated(mesh)
    feeds: tuple[Any, ...] = (split(mesh),)
    if config.data.resident:
        step, feeds = resident_step(config, step, mesh), (whole,)
        if (most := steps_per_dispatch(config)) > 1:
            step, feeds = repeated(step, most), (whole, whole)
    if teacher is not None:
        feeds += (whole,)
    options = compiler_options(mesh, config.train.deterministic)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(whole, *feeds),
        out_shardings=(whole, whole),
        compiler_options=options,
    )


def compiled_eval_step(config: Config, model: Network, mesh: Mesh) -> Any:
    whole, options = replicated(mesh), compiler_options(mesh, config.train.deterministic)
    return jax.jit(
        eval_step(config, model),
        in_shardings=(whole, split(mesh)),
        out_shardings=whole,
        compiler_options=options,
    )
