"""Learning rate schedules and optimizers, composed from optax in the order of their formulas."""

import collections
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from flaxres.config.schema import OptimConfig
from flaxres.models.blocks import SCANNED


def warmup_steps(config: OptimConfig, steps_per_epoch: float) -> int:
    return (
        round(config.warmup_epochs * steps_per_epoch)
        if config.warmup_steps is None
        else config.warmup_steps
    )


def learning_rate(config: OptimConfig, steps: int, steps_per_epoch: float) -> optax.Schedule:
    """Step -> learning rate: a linear warmup, then the cosine (Loshchilov & Hutter 2017), a line, a polynomial, steps, or nothing.

    `steps_per_epoch` may be fractional. What falls spans what the warmup leaves and reaches its end at `steps`.
    """
    peak, warmup = config.learning_rate, warmup_steps(config, steps_per_epoch)
    left = max(steps - warmup, 1)
    after: optax.Schedule
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, left, config.final_scale)
    elif config.schedule in ("linear", "polynomial"):
        after = optax.polynomial_schedule(
            peak,
            peak * config.final_scale,
            1.0 if config.schedule == "linear" else config.power,
            left,
        )
    elif config.schedule == "step":
        at = config.milestone_steps or [
            round(epoch * steps_per_epoch) for epoch in config.milestones
        ]
        # Several milestones may round to one step; each counts.
        counts = collections.Counter(step - warmup for step in at)
        factors = {step: config.gamma**count for step, count in counts.items()}
        after = optax.piecewise_constant_schedule(peak, factors)
    else:
        after = optax.constant_schedule(peak)
    return (
        optax.join_schedules(
            [optax.linear_schedule(peak * config.warmup_scale, peak, warmup), after], [warmup]
        )
        if warmup
        else after
    )


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


def decayed(params: Any) -> Any:
    """Returns the mask of weight decay: kernels, but no scales of norms and no biases.

    Goyal et al. 2017, section 5.3.
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: rank(path, leaf) > 1, params)


def optimizer(config: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer that a config names, its gradient clipped before and its updates scaled by depth after.

    sgd: PyTorch's: `g + decay * w`, then momentum, then the learning rate outside the buffer (Goyal et al. 2017, section 3, remark 2).
    sgdw: the same without decay, then `(rate / peak) * decay * w` (Loshchilov & Hutter 2019, algorithm 1).
    lars: You et al. 2017, algorithm 1, with the learning rate outside the buffer, as timm has it. lamb: You et al. 2020, algorithm 2, as timm has it.
    adamw: Loshchilov & Hutter 2019, algorithm 2.
    muon: Jordan et al. 2024, for the kernels of convolutions; AdamW for the rest.
    """
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    parts += PARTS[config.name](config, schedule)
    return (
        optax.chain(*parts, by_depth(config.layer_decay))
        if config.layer_decay < 1
        else optax.chain(*parts)
    )


def mask(config: OptimConfig) -> Any:
    return None if config.decay_norm_and_bias else decayed


def masked(config: OptimConfig, part: optax.GradientTransformation) -> optax.GradientTransformation:
    return part if config.decay_norm_and_bias else optax.masked(part, decayed)


def sgd(config: OptimConfig, schedule: optax.Schedule) -> list[optax.GradientTransformation]:
    return [
        optax.add_decayed_weights(config.weight_decay, mask(config)),
        optax.sgd(schedule, config.momentum or None, config.nesterov),
    ]


def sgdw(config: OptimConfig, schedule: optax.Schedule) -> list[optax.GradientTransformation]:
    moving = optax.trace(config.momentum, config.nesterov) if config.momentum else optax.identity()
    shares = config.weight_decay / config.learning_rate if config.learning_rate else 0.0
    return [
        moving,
        optax.add_decayed_weights(shares, mask(config)),
        optax.scale_by_learning_rate(schedule),
    ]


def lars(config: OptimConfig, schedule: optax.Schedule) -> list[optax.GradientTransformation]:
    local = masked(config, layer_rates(config.weight_decay, config.trust_coefficient))
    return [
        local,
        optax.trace(config.momentum, config.nesterov),
        optax.scale_by_learning_rate(schedule),
    ]


def layer_rates(decay: float, coefficient: float) -> optax.GradientTransformation:
    """`(g + decay * w) * coefficient * |w| / (|g| + decay * |w|)` of each array (You et al. 2017, eq. 6).

    optax's trust ratio divides by `|g + decay * w|` instead, which is another optimizer.
    """

    def rated(gradient: jax.Array, weight: jax.Array) -> jax.Array:
        g, w = optax.safe_norm(gradient, 0.0), optax.safe_norm(weight, 0.0)
        ratio = coefficient * w / jnp.where(g > 0, g + decay * w, 1.0)
        return (gradient + decay * weight) * jnp.where((g > 0) & (w > 0), ratio, 1.0)

    return by_layer(optax.stateless(lambda updates, params: jax.tree.map(rated, updates, params)))


def lamb(config: OptimConfig, schedule: optax.Schedule) -> list[optax.GradientTransformation]:
    return [
        optax.scale_by_adam(config.momentum, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask(config)),
        masked(config, by_layer(optax.scale_by_trust_ratio())),
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
            mask=mask(config),
        )
    ]


def muon(config: OptimConfig, schedule: optax.Schedule) -> list[optax.GradientTransformation]:
    matrices = functools.partial(jax.tree.map, matrix)
    orthogonal = optax.chain(
        optax.contrib.scale_by_muon(
            beta=config.momentum, nesterov=config.nesterov, weight_dimension_numbers=matrices
        ),
        optax.stateless(lambda updates, _: jax.tree.map(as_large_as_adams, updates)),
    )
    return [
        optax.partition(
            {
                "muon": orthogonal,
                "adam": optax.scale_by_adam(config.momentum, config.beta2, config.epsilon),
            },
            labels,
        ),
        optax.add_decayed_weights(config.weight_decay, mask(config)),
        optax.scale_by_learning_rate(schedule),
    ]


def labels(params: Any) -> Any:
    """Which parameters are orthogonalised: the kernels of convolutions, not the head (Jordan et al. 2024)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: "muon" if rank(path, leaf) >= 4 and depth(slashed(path)) < 5 else "adam",
        params,
    )


def matrix(kernel: jax.Array) -> optax.contrib.MuonDimensionNumbers:
    """A kernel (..., height, width, inputs, outputs) as the matrices of all that an output sums."""
    return optax.contrib.MuonDimensionNumbers(
        tuple(range(kernel.ndim - 4, kernel.ndim - 1)), kernel.ndim - 1
    )


def as_large_as_adams(update: jax.Array) -> jax.Array:
    """An orthogonal matrix at a root mean square of 0.2, AdamW's, for the learning rates and decays of AdamW (Liu et al. 2025, eq. 4)."""
    *inputs, outputs = update.shape[-4:]
    return 0.2 * math.sqrt(max(math.prod(inputs), outputs)) * update


PARTS = {"sgd": sgd, "sgdw": sgdw, "lars": lars, "lamb": lamb, "adamw": adamw, "muon": muon}
HEADS = {"fc", "linear", "head", "classifier"}


def slashed(path: Any) -> str:
    return "/".join(str(key.key) for key in path)


def depth(name: str) -> int:
    """Stage of a parameter by its name, e.g. `layer3/0/conv1/kernel`: 0 the stem, 1 to 4 the stages, 5 the head."""
    if set(name.split("/")) & HEADS:
        return 5
    if found := re.search(r"(?:layer|denseblock|transition)(\d)|stages/(\d)", name):
        return int(found[1]) if found[1] else int(found[2]) + 1
    return 4 if re.search(r"(^|/)norm5?/", name) else 0


def by_depth(decay: float) -> optax.GradientTransformation:
    """Updates times `decay` to the power of the number of the network's stages that lie behind a parameter's, the head's included."""

    def update(updates: Any, _: Any) -> Any:
        depths = sorted(
            {depth(slashed(path)) for path, _ in jax.tree_util.tree_leaves_with_path(updates)}
        )
        behind = {found: len(depths) - 1 - i for i, found in enumerate(depths)}
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * decay ** behind[depth(slashed(path))], updates
        )

    return optax.stateless(update)
