"""Deep stacks of dense layers in the four ways in which layers are joined; one trace serves any depth.

plain: `relu(W2 relu(W1 x))`, layer after layer. residual: `relu(W2 relu(W1 x) + x)` (He et al. 2016, eq. 1, with dense layers in place of
convolutions). preactivation: `x + W2 relu(W1 relu(x))` (He et al. 2016, "Identity mappings", figure 4e). dense: each layer takes the outputs of all
before it (Huang et al. 2017, eq. 2). With `norm`, activations are normalised over the batch where those papers do it.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from flaxres.data.builders import read_digits

Kind = Literal["plain", "residual", "preactivation", "dense"]
Init = Literal["glorot", "he"]
KINDS: tuple[Kind, ...] = ("plain", "residual", "preactivation", "dense")
GAIN = {
    "glorot": 1.0,
    "he": 2.0,
}  # of the variance: Glorot & Bengio 2010, eq. 12 (square layers), and He et al. 2015, eq. 10
CLASSES = 10
Params = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Stack:
    """`depth` hidden layers of `width`, an even number; of `growth` in a dense one. Biases start at zero and are left out."""

    kind: Kind
    depth: int
    norm: bool = False
    init: Init = "glorot"
    width: int = 64
    growth: int = 4

    def born(self, key: jax.Array, inputs: int, dtype: Any = jnp.float32) -> Params:
        """`first` (inputs, width), `layers` stacked by depth, `head` (features, 10)."""
        first, layers, head = jax.random.split(key, 3)
        wide = self.features
        seen, shape = np.full(self.depth, self.width), (self.depth, self.width, self.width)
        if self.kind == "dense":
            seen, shape = (
                seen + self.growth * np.arange(self.depth),
                (self.depth, wide, self.growth),
            )
        scale = np.sqrt(GAIN[self.init] / seen)[:, None, None]
        return {
            "first": jax.random.normal(first, (inputs, self.width), dtype) / math.sqrt(inputs),
            "layers": jax.random.normal(layers, shape, dtype) * scale,
            "head": jax.random.normal(head, (wide, CLASSES), dtype) / math.sqrt(wide),
        }

    @property
    def features(self) -> int:
        """Width of what the head takes."""
        return self.width + self.growth * self.depth if self.kind == "dense" else self.width

    def normal(self, x: jax.Array) -> jax.Array:
        return (x - x.mean(0)) * lax.rsqrt(x.var(0) + 1e-5) if self.norm else x

    @property
    def joints(self) -> tuple[int, int]:
        """Places where what the layers give is joined, and its width there: blocks of two layers, or every layer of a dense stack."""
        return (self.depth, self.growth) if self.kind == "dense" else (self.depth // 2, self.width)

    def __call__(
        self,
        params: Params,
        x: jax.Array,
        shares: jax.Array | None = None,
        added: jax.Array | None = None,
    ) -> jax.Array:
        """Inputs (N, pixels) -> logits (N, 10).

        `shares`: (depth / 2,), how much of what it changes each block does: 0 bypasses it; a dense stack has none. `added` (joints, N, width there):
        added to what each joint gives, so that the gradient by it is the one that arrives there.
        """
        x = x @ params["first"]
        joints, wide = self.joints
        added = jnp.zeros((joints, len(x), wide), x.dtype) if added is None else added
        if self.kind == "dense":
            return self.densely(params["layers"], x, added) @ params["head"]
        pairs = params["layers"].reshape(joints, 2, self.width, self.width)
        block = {
            "plain": self.plain,
            "residual": self.residual,
            "preactivation": self.preactivation,
        }[self.kind]

        def joined(x: jax.Array, one: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            pair, more, *share = one
            y = block(x, *pair)
            return (x + share[0] * (y - x) if share else y) + more, None

        x, _ = lax.scan(joined, x, (pairs, added) if shares is None else (pairs, added, shares))
        return (jax.nn.relu(self.normal(x)) if self.kind == "preactivation" else x) @ params["head"]

    def plain(self, x: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
        return jax.nn.relu(self.normal(jax.nn.relu(self.normal(x @ first)) @ second))

    def residual(self, x: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
        return jax.nn.relu(self.normal(jax.nn.relu(self.normal(x @ first)) @ second) + x)

    def preactivation(self, x: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
        return x + jax.nn.relu(self.normal(jax.nn.relu(self.normal(x)) @ first)) @ second

    def densely(self, layers: jax.Array, x: jax.Array, added: jax.Array) -> jax.Array:
        """All features so far lie in one array, whose rest is zero."""
        everything = jnp.zeros((len(x), self.features), x.dtype).at[:, : self.width].set(x)

        def layer(everything: jax.Array, one: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            kernel, more, index = one
            new = jax.nn.relu(self.normal(everything)) @ kernel + more
            return lax.dynamic_update_slice(
                everything, new, (0, self.width + self.growth * index)
            ), None

        everything, _ = lax.scan(layer, everything, (layers, added, jnp.arange(self.depth)))
        return jax.nn.relu(self.normal(everything))

    def loss(
        self,
        params: Params,
        x: jax.Array,
        labels: jax.Array,
        shares: jax.Array | None = None,
        added: jax.Array | None = None,
    ) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(
            self(params, x, shares, added), labels
        ).mean()

    def gradient_norms(
        self, params: Params, x: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Of the loss by each hidden layer's weights (depth,), and by what each joint gives (joints,): dJ/dW and dJ/dx, first layer first."""
        joints, wide = self.joints
        added = jnp.zeros((joints, len(x), wide), x.dtype)
        weights, arriving = jax.grad(
            lambda params, added: self.loss(params, x, labels, None, added), (0, 1)
        )(params, added)
        return norms(weights["layers"]), norms(arriving)


def norms(arrays: jax.Array) -> jax.Array:
    """Of each of (A, ...), scaled before it is squared: squares of 1e-160 are zero."""
    axes = tuple(range(1, arrays.ndim))
    largest = abs(arrays).max(axes, keepdims=True)
    scaled = arrays / jnp.where(largest > 0, largest, 1)
    return largest.reshape(-1) * jnp.sqrt(jnp.square(scaled).sum(axes))


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The bundled digits as (N, 64) float32 of mean 0 and deviation 1 over the training split, and labels (N,)."""
    images, labels, held_out = read_digits()
    pixels = images.reshape(len(images), -1).astype(np.float32)
    chosen = held_out == (split == "test")
    return (pixels[chosen] - pixels[~held_out].mean()) / pixels[~held_out].std(), labels[
        chosen
    ].astype(np.int32)
