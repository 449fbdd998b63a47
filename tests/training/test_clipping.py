"""Adaptive gradient clipping."""

import jax
import numpy as np

from flaxres.config.sections.optim import OptimConfig
from flaxres.training.optimizers import optimizer


def test_adaptive_clipping_limits_each_unit_but_the_heads() -> None:
    """Brock et al. 2021, eq. 3, for the outputs of a kernel, a bias, and a learned number."""
    rng = np.random.default_rng(0)
    shapes = {
        "conv1": {"kernel": (3, 3, 2, 4), "bias": (4,)},
        "scale": (),
        "fc": {"kernel": (4, 3)},
    }
    params, gradient = (
        jax.tree.map(
            lambda size: np.asarray(rng.normal(size=size), np.float32), shapes, is_leaf=is_shape
        )
        for _ in range(2)
    )
    config = OptimConfig("sgd", 1.0, momentum=0.0, weight_decay=0.0, adaptive_clip=0.5)
    tx = optimizer(config, lambda count: 1.0)
    updates, _ = tx.update(gradient, tx.init(params), params)

    def clipped(g: np.ndarray, w: np.ndarray) -> np.ndarray:
        axes = tuple(range(g.ndim - 1)) if g.ndim > 1 else None
        norms = [np.sqrt(np.square(x).sum(axes, keepdims=True)) for x in (g, w)]
        most = 0.5 * np.maximum(norms[1], 1e-3)
        return np.where(norms[0] > most, g * most / norms[0], g)

    expected = jax.tree.map(clipped, gradient, params) | {"fc": gradient["fc"]}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(-a, b, rtol=1e-5), updates, expected)
    assert not np.allclose(expected["conv1"]["kernel"], gradient["conv1"]["kernel"])


def is_shape(value: object) -> bool:
    return isinstance(value, tuple)
