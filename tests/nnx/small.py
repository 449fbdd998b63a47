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


def network(**attributes: Any) -> flaxres.nnx.ResNet:
    return flaxres.nnx.ResNet(**SMALL | attributes, rngs=nnx.Rngs(0, dropout=1))


def same(first: Any, second: Any) -> bool:
    return bool(jax.tree.all(jax.tree.map(np.array_equal, first, second)))
