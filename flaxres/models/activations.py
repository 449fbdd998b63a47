"""Activations by name, and the gains with which they keep the variance of their input."""

from collections.abc import Callable

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from flaxres.ops import kept


def relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Computes `max(x, 0)`."""
    return kept.keep(kept.relu(x))


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Computes `x * Phi(x)`, the exact form (Hendrycks & Gimpel 2016, section 2)."""
    return nn.gelu(x, approximate=False)


def gelu_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Approximates `gelu` by a tanh (Hendrycks & Gimpel 2016, section 2)."""
    return nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": relu,
    "silu": nn.silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
}
# 1 / sqrt(Var(f(x))) for x of a normal distribution, as drawn by the authors of NFNets (Brock et
# al. 2021, "Characterizing signal propagation", section 4.1; their `nonlinearities`).
GAINS = {"relu": 1.7139588594436646, "silu": 1.7881293296813965, "gelu": 1.7015043497085571}
