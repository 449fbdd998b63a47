"""Learning rate schedules and the optimizer, composed from optax in the order of the formula."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from flaxres.training.config import OptimConfig


def learning_rate(config: OptimConfig, steps: int, steps_per_epoch: float) -> optax.Schedule:
    """Step -> learning rate: a linear warmup, then the cosine (Loshchilov & Hutter 2017), steps, or nothing.

    `steps_per_epoch` may be fractional. The cosine spans what the warmup leaves and reaches its end at `steps`.
    """
    peak, warmup = config.learning_rate, round(config.warmup_epochs * steps_per_epoch)
    after: optax.Schedule
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), config.final_scale)
    elif config.schedule == "step":
        boundaries = {round(epoch * steps_per_epoch) - warmup: config.gamma for epoch in config.milestones}
        after = optax.piecewise_constant_schedule(peak, boundaries)
    else:
        after = optax.constant_schedule(peak)
    return optax.join_schedules([optax.linear_schedule(peak * config.warmup_scale, peak, warmup), after], [warmup]) if warmup else after


def decayed(params: Any) -> Any:
    """The mask of weight decay: kernels yes; norms' scales and all biases no (Goyal et al. 2017, section 5.3)."""
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)


def optimizer(config: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """PyTorch's SGD: `g + decay * w`, then momentum, then the learning rate outside the buffer (Goyal et al. 2017, section 3, remark 2)."""
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, None if config.decay_norm_and_bias else decayed),
        optax.sgd(schedule, config.momentum or None, config.nesterov),
    )
