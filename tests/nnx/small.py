"""A small NNX network for tests."""

from typing import Any

import jax
import numpy as np
from flax import nnx

import flaxres
import flaxres.nnx

SMALL: dict[str, Any] = {
    "depths": (3, 1),
    "widths": (4, 8),
    "block": "basic",
    "stem": "small",
    "stem_width": 4,
    "num_classes": 3,
}
IMAGES = np.random.default_rng(0).standard_normal((4, 8, 8, 3), np.float32)
forward = nnx.jit(lambda model, x: model(x))


def network(**attributes: Any) -> Any:
    return filled(flaxres.ResNet(**SMALL | attributes))


def filled(linen: Any, seed: int = 0) -> Any:
    """Returns a network with random values, without compiling an initialisation."""
    rng = np.random.default_rng(seed)
    variables = jax.eval_shape(linen.init, jax.random.key(0), IMAGES)
    values = jax.tree.map(lambda leaf: rng.normal(0.1, 0.3, leaf.shape), variables)
    values["batch_stats"] = jax.tree.map(np.square, values["batch_stats"])
    values = jax.tree.map(np.float32, values)
    return flaxres.nnx.from_linen(linen, values, rngs=nnx.Rngs(dropout=1))


def same(first: Any, second: Any) -> bool:
    return bool(jax.tree.all(jax.tree.map(np.array_equal, first, second)))
