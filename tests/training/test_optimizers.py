"""Schedules equal their formulas at every step; SGD is PyTorch's."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxres import OptimConfig
from flaxres.training.optimizers import decayed, learning_rate, optimizer

STEPS, EPOCH = 200, 12.5


def cosine(step: int) -> float:
    return 0.4 * (0.01 + 0.99 * step / 25) if step < 25 else 0.4 * (0.1 + 0.9 * (1 + math.cos(math.pi * (step - 25) / 175)) / 2)


def steps(step: int) -> float:
    return 0.4 * 0.1 ** sum(step >= boundary for boundary in (50, 100))


@pytest.mark.parametrize(
    ("config", "formula"),
    [
        (OptimConfig(learning_rate=0.4, warmup_epochs=2, warmup_scale=0.01, final_scale=0.1), cosine),
        (OptimConfig(learning_rate=0.4, schedule="step", milestones=(4, 8)), steps),
        (OptimConfig(learning_rate=0.4, schedule="step", milestones=(4, 8), warmup_epochs=2), lambda s: 0.4 * s / 25 if s < 25 else steps(s)),
        (OptimConfig(learning_rate=0.4, schedule="constant"), lambda step: 0.4),
    ],
)
def test_schedules_equal_their_formulas(config: OptimConfig, formula: object) -> None:
    schedule = learning_rate(config, STEPS, EPOCH)
    assert callable(formula)
    np.testing.assert_allclose([schedule(step) for step in range(STEPS + 1)], [formula(step) for step in range(STEPS + 1)], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("everything", [False, True])
def test_sgd_is_pytorchs(nesterov: bool, everything: bool) -> None:
    config = OptimConfig(learning_rate=0.3, momentum=0.9, nesterov=nesterov, weight_decay=0.01, decay_norm_and_bias=everything, schedule="constant")
    tx = optimizer(config, learning_rate(config, STEPS, EPOCH))
    params = {"kernel": jnp.ones((2, 3)), "scale": jnp.full(3, 2.0)}
    opt_state = tx.init(params)
    ours, buffers = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}, {}
    for step in range(5):
        gradients = {name: jax.random.normal(jax.random.key(step), leaf.shape) for name, leaf in params.items()}
        updates, opt_state = tx.update(gradients, opt_state, params)
        params = jax.tree.map(jnp.add, params, updates)
        for name, weight in ours.items():  # the loop of torch.optim.SGD's documentation
            gradient = np.asarray(gradients[name], np.float64) + (0.01 * weight if everything or name == "kernel" else 0)
            buffers[name] = gradient if step == 0 else 0.9 * buffers[name] + gradient
            ours[name] = weight - 0.3 * (gradient + 0.9 * buffers[name] if nesterov else buffers[name])
    for name, weight in ours.items():
        np.testing.assert_allclose(params[name], weight, rtol=1e-5)


def test_the_mask_spares_norms_and_biases() -> None:
    params = {"conv": {"kernel": jnp.ones((3, 3, 1, 1))}, "bn": {"scale": jnp.ones(3), "bias": jnp.ones(3)}}
    assert decayed(params) == {"conv": {"kernel": True}, "bn": {"scale": False, "bias": False}}
