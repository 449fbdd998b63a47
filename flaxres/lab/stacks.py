"""Deep stacks of dense layers, joined in four ways; one trace serves any depth.

- plain: `relu(W2 relu(W1 x))`, layer after layer.
- residual: `relu(W2 relu(W1 x) + x)` (He et al. 2016, eq. 1, with dense layers in place of
  convolutions).
- preactivation: `x + W2 relu(W1 relu(x))` (He et al. 2016, "Identity mappings", figure 4e).
- dense: each layer takes the outputs of all layers before it (Huang et al. 2017, eq. 2).

With `norm`, activations are normalised over the batch where those papers do it.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from flaxres.data.builders import read_digits

Kind = Literal["plain", "residual", "preactivation", "dense"]
Init = Literal["glorot", "he"]
KINDS: tuple[Kind, ...] = ("plain", "residual", "preactivation", "dense")
# Gains of the variance: Glorot & Bengio 2010, eq. 12 (square layers), and He et al. 2015, eq. 10.
GAIN = {"glorot": 1.0, "he": 2.0}
CLASSES = 10
Params = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Stack:
    """A stack of dense layers without biases, which would start at zero.

    Attributes:
      kind: 'plain', 'residual', 'preactivation' or 'dense'.
      depth: number of hidden layers, even.
      norm: normalise activations over the batch.
      init: 'glorot' or 'he'.
      width: width of the hidden layers.
      growth: outputs of each layer of a dense stack.

    Call: `(params, x, shares=None, added=None)`, inputs (N, pixels) -> logits (N, 10).
      shares: (depth / 2,), the share of each block's change that is applied; 0 bypasses the block.
        Not for dense stacks.
      added: (joints, N, width there), added to the output of each joint. The gradient by it is the
        one that arrives there.

    Examples:
      >>> stack = Stack("residual", depth=4)
      >>> params = stack.initialise(jax.random.key(0), inputs=64)
      >>> stack(params, jnp.ones((2, 64))).shape
      (2, 10)
    """

    kind: Kind
    depth: int
    norm: bool = False
    init: Init = "glorot"
    width: int = 64
    growth: int = 4

    def initialise(self, key: jax.Array, inputs: int, dtype: Any = jnp.float32) -> Params:
        """Draws the parameters.

        Args:
          key: a PRNG key.
          inputs: number of inputs.
          dtype: of the parameters.

        Returns:
          `first` (inputs, width), `layers` stacked by depth, and `head` (features, 10).
        """
        first, layers, head = jax.random.split(key, 3)
        wide = self.features
        fan_in, shape = np.full(self.depth, self.width), (self.depth, self.width, self.width)
        if self.kind == "dense":
            fan_in = fan_in + self.growth * np.arange(self.depth)
            shape = (self.depth, wide, self.growth)
        scale = np.sqrt(GAIN[self.init] / fan_in)[:, None, None]
        return {
            "first": jax.random.normal(first, (inputs, self.width), dtype) / math.sqrt(inputs),
            "layers": jax.random.normal(layers, shape, dtype) * scale,
            "head": jax.random.normal(head, (wide, CLASSES), dtype) / math.sqrt(wide),
        }

    @property
    def features(self) -> int:
        """Number of inputs of the head."""
        return self.width + self.growth * self.depth if self.kind == "dense" else self.width

    @property
    def joints(self) -> tuple[int, int]:
        """Number of places where outputs are joined, and their width.

        They are the blocks of two layers, or every layer of a dense stack.
        """
        return (self.depth, self.growth) if self.kind == "dense" else (self.depth // 2, self.width)

    def __call__(
        self,
        params: Params,
        x: Float[Array, "n pixels"],
        shares: Float[Array, " blocks"] | None = None,
        added: Float[Array, "joints n width"] | None = None,
    ) -> Float[Array, "n 10"]:
        x = x @ params["first"]
        joints, wide = self.joints
        added = jnp.zeros((joints, len(x), wide), x.dtype) if added is None else added
        if self.kind == "dense":
            return self._densely(params["layers"], x, added) @ params["head"]
        pairs = params["layers"].reshape(joints, 2, self.width, self.width)
        block = getattr(self, self.kind)

        def joined(x: jax.Array, one: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            pair, more, *share = one
            y = block(x, *pair)
            return (x + share[0] * (y - x) if share else y) + more, None

        x, _ = lax.scan(joined, x, (pairs, added) if shares is None else (pairs, added, shares))
        return (jax.nn.relu(self._normal(x)) if self.kind == "preactivation" else x) @ params[
            "head"
        ]

    def plain(
        self, x: Float[Array, "n w"], first: Float[Array, "w w"], second: Float[Array, "w w"]
    ) -> Float[Array, "n w"]:
        """Returns the output of a plain block."""
        return jax.nn.relu(self._normal(jax.nn.relu(self._normal(x @ first)) @ second))

    def residual(
        self, x: Float[Array, "n w"], first: Float[Array, "w w"], second: Float[Array, "w w"]
    ) -> Float[Array, "n w"]:
        """Returns the output of a residual block."""
        return jax.nn.relu(self._normal(jax.nn.relu(self._normal(x @ first)) @ second) + x)

    def preactivation(
        self, x: Float[Array, "n w"], first: Float[Array, "w w"], second: Float[Array, "w w"]
    ) -> Float[Array, "n w"]:
        """Returns the output of a pre-activation block."""
        return x + jax.nn.relu(self._normal(jax.nn.relu(self._normal(x)) @ first)) @ second

    def _normal(self, x: jax.Array) -> jax.Array:
        return (x - x.mean(0)) * lax.rsqrt(x.var(0) + 1e-5) if self.norm else x

    def _densely(self, layers: jax.Array, x: jax.Array, added: jax.Array) -> jax.Array:
        """Applies the layers of a dense stack; all features so far are in one zero-padded array."""
        everything = jnp.zeros((len(x), self.features), x.dtype).at[:, : self.width].set(x)

        def layer(everything: jax.Array, one: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            kernel, more, index = one
            new = jax.nn.relu(self._normal(everything)) @ kernel + more
            start = (0, self.width + self.growth * index)
            return lax.dynamic_update_slice(everything, new, start), None

        everything, _ = lax.scan(layer, everything, (layers, added, jnp.arange(self.depth)))
        return jax.nn.relu(self._normal(everything))

    def loss(
        self,
        params: Params,
        x: Float[Array, "n pixels"],
        labels: Int[Array, " n"],
        shares: Float[Array, " blocks"] | None = None,
        added: Float[Array, "joints n width"] | None = None,
    ) -> Float[Array, ""]:
        """Returns the mean cross-entropy in nats; arguments as in the call."""
        logits = self(params, x, shares, added)
        loss: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss

    def gradient_norms(
        self, params: Params, x: Float[Array, "n pixels"], labels: Int[Array, " n"]
    ) -> tuple[Float[Array, " depth"], Float[Array, " joints"]]:
        """Returns norms of the gradients of the loss, the first layer first.

        Args:
          params: what `initialise` returned.
          x: inputs.
          labels: classes.

        Returns:
          dJ/dW, by each hidden layer's weights, and dJ/dx, by the output of each joint.

        Examples:
          >>> images, labels = digits("train")
          >>> stack = Stack("plain", depth=40)
          >>> params = stack.initialise(jax.random.key(0), inputs=64)
          >>> _, arriving = jax.jit(stack.gradient_norms)(params, images[:32], labels[:32])
          >>> bool(arriving[0] < 1e-4 * arriving[-1])  # it vanishes on its way to the first block
          True
        """
        joints, wide = self.joints
        added = jnp.zeros((joints, len(x), wide), x.dtype)
        weights, arriving = jax.grad(
            lambda params, added: self.loss(params, x, labels, None, added), (0, 1)
        )(params, added)
        return norms(weights["layers"]), norms(arriving)


def norms(arrays: Float[Array, "n ..."]) -> Float[Array, " n"]:
    """Returns the norm of each array, scaled before it is squared: squares of 1e-160 are zero."""
    axes = tuple(range(1, arrays.ndim))
    largest = abs(arrays).max(axes, keepdims=True)
    scaled = arrays / jnp.where(largest > 0, largest, 1)
    return largest.reshape(-1) * jnp.sqrt(jnp.square(scaled).sum(axes))


def digits(split: str) -> tuple[Float[np.ndarray, "n 64"], Int[np.ndarray, " n"]]:
    """Returns the bundled digits.

    Args:
      split: 'train' or 'test'.

    Returns:
      Images in float32 with mean 0 and standard deviation 1 over the training split, and labels in
      int32.

    Examples:
      >>> images, labels = digits("test")
      >>> images.shape, labels.shape
      ((500, 64), (500,))
    """
    images, labels, held_out = read_digits()
    pixels = images.reshape(len(images), -1).astype(np.float32)
    chosen = held_out == (split == "test")
    normalised = (pixels[chosen] - pixels[~held_out].mean()) / pixels[~held_out].std()
    return normalised, labels[chosen].astype(np.int32)
