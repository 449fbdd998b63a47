"""Learning rate schedules and optimizers, composed from optax in the order of their formulas."""

import collections
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flaxres.config.schema import OptimConfig
from flaxres.models.outputs import HEADS, classifies
from flaxres.models.stage import SCANNED


def learning_rate(config: OptimConfig, steps: int, steps_per_epoch: float) -> optax.Schedule:
    """Returns the learning rate by step: a linear warmup, then the schedule of the config.

    `cosine` is that of Loshchilov & Hutter 2017, without restarts. `wsd` is that of Hu et al. 2024,
    section 4, with a line at the end. A decay spans the steps that the warmup leaves, and reaches
    its end at `steps`.

    Args:
      config: the optimizer's settings.
      steps: the steps of the whole run.
      steps_per_epoch: may be fractional.

    Returns:
      A function from the step, int or () int32, to the learning rate.

    Examples:
      >>> rate = learning_rate(OptimConfig(learning_rate=1.0, warmup_epochs=1.0), 20, 10.0)
      >>> [round(float(rate(step)), 2) for step in (0, 5, 10, 15, 20)]
      [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if warmup is None:
        warmup = round(config.warmup_epochs * steps_per_epoch)
    after = _decay(config, warmup, max(steps - warmup, 1), steps_per_epoch)
    if not warmup:
        return _wide(after)
    before = optax.linear_schedule(peak * config.warmup_scale, peak, warmup)
    return _wide(optax.join_schedules([before, after], [warmup]))


def _wide(schedule: optax.Schedule) -> optax.Schedule:
    """Lets a schedule compute in float64 where JAX has it.

    From an int32 step it computes in float32. XLA computes the rate anew for each parameter, with
    one rounding for a product and a sum, or two: on another number of devices the updates of some
    parameters were then 7e-8 apart.
    """

    def rate(step: Any) -> Any:
        return schedule(jnp.asarray(step, float) if jax.config.read("jax_enable_x64") else step)

    return rate


def _decay(config: OptimConfig, warmup: int, left: int, steps_per_epoch: float) -> optax.Schedule:
    """Returns the schedule of the `left` steps after the warmup."""
    peak = config.learning_rate
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(peak, left, config.final_scale)
    if config.schedule in ("linear", "polynomial"):
        power = 1.0 if config.schedule == "linear" else config.power
        return optax.polynomial_schedule(peak, peak * config.final_scale, power, left)
    if config.schedule == "step":
        at = config.milestone_steps or [
            round(epoch * steps_per_epoch) for epoch in config.milestones
        ]
        # Several milestones may round to one step; each counts.
        counts = collections.Counter(step - warmup for step in at)
        factors = {step: config.gamma**count for step, count in counts.items()}
        return optax.piecewise_constant_schedule(peak, factors)
    if config.schedule == "wsd":
        falling = min(max(round(config.decay_share * (warmup + left)), 1), left)
        fall = optax.linear_schedule(peak, peak * config.final_scale, falling)
        return optax.join_schedules([optax.constant_schedule(peak), fall], [left - falling])
    return optax.constant_schedule(peak)


def optimizer(config: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns the optimizer that a config names.

    Gradients are clipped before it, and its updates are scaled by depth after it.

    - `sgd`: as PyTorch's: `g + decay * w`, then momentum, then the learning rate outside the buffer
      (Goyal et al. 2017, section 3, remark 2).
    - `sgdw`: the same without decay, then `(rate / peak) * decay * w` (Loshchilov & Hutter 2019,
      algorithm 1).
    - `lars`: You et al. 2017, algorithm 1, with the learning rate outside the buffer, as in timm.
    - `lamb`: You et al. 2020, algorithm 2, as in timm.
    - `adamw`: Loshchilov & Hutter 2019, algorithm 2.
    - `muon`: Jordan et al. 2024 for the kernels of convolutions, AdamW for the rest.

    Args:
      config: the optimizer's settings.
      schedule: the learning rate by step.

    Examples:
      >>> config = OptimConfig(name="sgd", learning_rate=0.5, momentum=0.0, weight_decay=0.0)
      >>> tx = optimizer(config, optax.constant_schedule(0.5))
      >>> params = {"kernel": jnp.ones((1, 1))}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> updates["kernel"].tolist()
      [[-0.5]]
    """
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.adaptive_clip:
        parts.append(optax.masked(clip_by_unit(config.adaptive_clip), before_classes))
    parts += OPTIMIZERS[config.name](config, schedule)
    if config.layer_decay < 1:
        parts.append(by_depth(config.layer_decay))
    return optax.chain(*parts)


def clip_by_unit(share: float) -> optax.GradientTransformation:
    """Limits the norm of each unit's gradient to a share of that of its weights.

    Adaptive gradient clipping (Brock et al. 2021, "High-performance large-scale image recognition
    without normalization", eq. 3). A unit is an output of a kernel; a bias, a scale or a gain is
    one as a whole. Norms of weights count as at least 0.001.
    """
    return by_layer(optax.adaptive_grad_clip(share))


def before_classes(params: Any) -> Any:
    """Returns the mask of the parameters that are not of the layer of the classes."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not classifies([str(key.key) for key in path]), params
    )


def sgd(config: OptimConfig, schedule: optax.Schedule) -> list[optax.GradientTransformation]:
    return [
        optax.add_decayed_weights(config.weight_decay, _mask(config)),
        optax.sgd(schedule, config.momentum or None, config.nesterov),
    ]


def sgdw(config: OptimConfig, schedule: optax.Schedule) -> list[optax.GradientTransformation]:
    moving = optax.trace(config.momentum, config.nesterov) if config.momentum else optax.identity()
    relative_decay = config.weight_decay / config.learning_rate if config.learning_rate else 0.0
    return [
        moving,
        optax.add_decayed_weights(relative_decay, _mask(config)),
        optax.scale_by_learning_rate(schedule),
    ]


def lars(config: OptimConfig, schedule: optax.Schedule) -> list[optax.GradientTransformation]:
    return [
        _masked(config, layer_rates(config.weight_decay, config.trust_coefficient)),
        optax.trace(config.momentum, config.nesterov),
        optax.scale_by_learning_rate(schedule),
    ]


def layer_rates(decay: float, coefficient: float) -> optax.GradientTransformation:
    """Scales each array to `(g + decay * w) * coefficient * |w| / (|g| + decay * |w|)`.

    You et al. 2017, eq. 6. optax's trust ratio divides by `|g + decay * w|` instead, which is
    another optimizer.
    """

    def rate(gradient: jax.Array, weight: jax.Array) -> jax.Array:
        g, w = optax.safe_norm(gradient, 0.0), optax.safe_norm(weight, 0.0)
        ratio = coefficient * w / jnp.where(g > 0, g + decay * w, 1.0)
        return (gradient + decay * weight) * jnp.where((g > 0) & (w > 0), ratio, 1.0)

    return by_layer(optax.stateless(lambda updates, params: jax.tree.map(rate, updates, params)))


def lamb(config: OptimConfig, schedule: optax.Schedule) -> list[optax.GradientTransformation]:
    return [
        optax.scale_by_adam(config.momentum, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, _mask(config)),
        _masked(config, by_layer(optax.scale_by_trust_ratio())),
        optax.scale_by_learning_rate(schedule),
    ]


def adamw(config: OptimConfig, schedule: optax.Schedule) -> list[optax.GradientTransformation]:
    return [
        optax.adamw(
            schedule,
            config.momentum,
            config.beta2,
            config.epsilon,
            weight_decay=config.weight_decay,
            mask=_mask(config),
        )
    ]


def muon(config: OptimConfig, schedule: optax.Schedule) -> list[optax.GradientTransformation]:
    from optax import contrib  # takes a tenth of a second to load

    orthogonal = contrib.scale_by_muon(
        beta=config.momentum,
        nesterov=config.nesterov,
        weight_dimension_numbers=functools.partial(jax.tree_util.tree_map_with_path, _matrix_axes),
    )
    scale = optax.stateless(
        lambda updates, _: jax.tree_util.tree_map_with_path(_scale_as_adamw, updates)
    )
    adam = optax.scale_by_adam(config.momentum, config.beta2, config.epsilon)
    return [
        optax.partition({"muon": optax.chain(orthogonal, scale), "adam": adam}, _muon_labels),
        optax.add_decayed_weights(config.weight_decay, _mask(config)),
        optax.scale_by_learning_rate(schedule),
    ]


def _muon_labels(params: Any) -> Any:
    """Labels the parameters to orthogonalise: the kernels of 2-D convolutions and dense layers.

    The head is left out (Jordan et al. 2024).
    """

    def label(path: Any, leaf: Any) -> str:
        matrix = rank(path, leaf) in (2, 4) and depth(_slashed(path)) < 5
        return "muon" if matrix else "adam"

    return jax.tree_util.tree_map_with_path(label, params)


def _matrix_axes(path: Any, kernel: jax.Array) -> Any:
    """Returns the axes (height, width, inputs | outputs) of a kernel as a matrix."""
    from optax import contrib

    inputs = tuple(range(kernel.ndim - rank(path, kernel), kernel.ndim - 1))
    return contrib.MuonDimensionNumbers(inputs, kernel.ndim - 1)


def _scale_as_adamw(path: Any, update: jax.Array) -> jax.Array:
    """Scales an orthogonal matrix to a root mean square of 0.2, about that of AdamW's updates.

    Learning rates and decays of AdamW then fit (Liu et al. 2025, eq. 4).
    """
    *inputs, outputs = update.shape[-rank(path, update) :]
    return 0.2 * math.sqrt(max(math.prod(inputs), outputs)) * update


OPTIMIZERS = {"sgd": sgd, "sgdw": sgdw, "lars": lars, "lamb": lamb, "adamw": adamw, "muon": muon}


def decayed(params: Any) -> Any:
    """Returns the mask of weight decay: kernels, but no scales of norms and no biases.

    Goyal et al. 2017, section 5.3.
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: rank(path, leaf) > 1, params)


def _mask(config: OptimConfig) -> Any:
    return None if config.decay_norm_and_bias else decayed


def _masked(
    config: OptimConfig, part: optax.GradientTransformation
) -> optax.GradientTransformation:
    return part if config.decay_norm_and_bias else optax.masked(part, decayed)


def stacked(path: Any) -> bool:
    """Returns whether the leaf at `path` holds the arrays of several blocks, stacked by a scan."""
    return any(getattr(key, "key", None) == SCANNED for key in path)


def rank(path: Any, leaf: Any) -> int:
    """Returns the number of axes of one layer's array; a scan's axis is not one of them."""
    return int(jnp.ndim(leaf)) - stacked(path)


def by_layer(part: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies a transformation without state to the array of each layer separately.

    `part` treats an array as one layer. The arrays of scanned blocks are stacked along their first
    axis; it is mapped over them, so that a scanned network is trained as the unrolled one.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def one(update: jax.Array, param: jax.Array) -> jax.Array:
            result: jax.Array = part.update(update, part.init(param), param)[0]
            return result

        def of_leaf(path: Any, update: jax.Array, param: jax.Array) -> jax.Array:
            return jax.vmap(one)(update, param) if stacked(path) else one(update, param)

        return jax.tree_util.tree_map_with_path(of_leaf, updates, params), state

    return optax.GradientTransformation(part.init, update)


def by_depth(decay: float) -> optax.GradientTransformation:
    """Scales updates by `decay` to the power of the number of stages after the parameter.

    The head counts as a stage.
    """

    def update(updates: Any, _: Any) -> Any:
        leaves = jax.tree_util.tree_leaves_with_path(updates)
        depths = sorted({depth(_slashed(path)) for path, _ in leaves})
        behind = {stage: len(depths) - 1 - i for i, stage in enumerate(depths)}

        def scale(path: Any, leaf: jax.Array) -> jax.Array:
            return leaf * decay ** behind[depth(_slashed(path))]

        return jax.tree_util.tree_map_with_path(scale, updates)

    return optax.stateless(update)


def depth(name: str) -> int:
    """Returns the stage of a parameter: 0 the stem, 1 to 4 the stages, 5 the head.

    Examples:
      >>> depth("layer3/0/conv1/kernel"), depth("s3/0/se/fc1/kernel"), depth("final_conv/bias")
      (3, 3, 4)
    """
    if not set(name.split("/")).isdisjoint(HEADS):
        return 5
    if match := re.search(r"(?:layer|denseblock|transition|^s)(\d)|stages/(\d)", name):
        return int(match[1]) if match[1] else int(match[2]) + 1
    return 4 if re.search(r"(^|/)(norm(5|_pre)?|final_conv)/", name) else 0


def _slashed(path: Any) -> str:
    return "/".join(str(key.key) for key in path)
