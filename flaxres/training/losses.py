"""Losses of the training step, one value for each example."""

import jax
import numpy as np
import optax
from flax.typing import Dtype
from jaxtyping import Array, Float, Int

from flaxres.config.schema import OptimConfig


def smooth_targets(
    labels: Int[Array, " n"], classes: int, smoothing: float, dtype: Dtype
) -> Float[Array, "n classes"]:
    """Returns smoothed one-hot targets (Szegedy et al. 2016, section 7).

    Args:
      labels: class numbers.
      classes: the number of classes.
      smoothing: the share of the probability that is spread evenly over all classes.
      dtype: of the targets.

    Examples:
      >>> import jax.numpy as jnp
      >>> smooth_targets(jnp.array([1]), 2, 0.5, jnp.float32).tolist()
      [[0.25, 0.75]]
    """
    one_hot = jax.nn.one_hot(labels, classes, dtype=dtype)
    smoothed: jax.Array = optax.smooth_labels(one_hot, smoothing)
    return smoothed


def class_weights(
    counts: Int[np.ndarray, " classes"], power: float
) -> Float[np.ndarray, " classes"]:
    """Returns weights of classes whose mean over all examples is 1.

    A power of 1 gives `n / (K n_c)`, for n examples, n_c of them in class c, and K classes that
    have any; 0.5 is the square root of Mahajan et al. 2018, section 2.2. The cross entropy of
    weighted targets is then PyTorch's with `weight`, but for its division by the batch's weights.

    Args:
      counts: the number of examples of each class.
      power: of the inverse number.

    Examples:
      >>> class_weights(np.array([90, 10]), 1.0).round(3).tolist()
      [0.556, 5.0]
    """
    weights = np.where(counts > 0, 1 / np.maximum(counts, 1.0), 0.0) ** power
    weights *= counts.sum() / (weights * counts).sum()
    return np.asarray(weights)


def weighted(
    targets: Float[Array, "n classes"], weights: Float[np.ndarray, " classes"] | None
) -> Float[Array, "n classes"]:
    """Returns targets whose cross entropy counts each class by its weight; None is 1 for all."""
    return targets if weights is None else targets * weights.astype(targets.dtype)


def example_losses(
    optim: OptimConfig, logits: Float[Array, "n classes"], targets: Float[Array, "n classes"]
) -> Float[Array, " n"]:
    """Returns the loss that `optim.loss` names, in nats.

    The binary losses are those of Wightman et al. 2021, section 2.2.

    Examples:
      >>> import jax.numpy as jnp
      >>> logits, targets = jnp.zeros((1, 2)), jnp.array([[0.0, 1.0]])
      >>> round(float(example_losses(OptimConfig(), logits, targets)[0]), 4)
      0.6931
    """
    if optim.loss == "cross_entropy":
        cross_entropy: jax.Array = optax.softmax_cross_entropy(logits, targets)
        return cross_entropy
    if optim.binary_threshold is not None:
        targets = (targets > optim.binary_threshold).astype(logits.dtype)
    binary: jax.Array = optax.sigmoid_binary_cross_entropy(logits, targets)
    return binary.mean(-1) if optim.loss == "binary" else binary.sum(-1)


def distillation_losses(
    temperature: float, logits: Float[Array, "n classes"], teacher: Float[Array, "n classes"]
) -> Float[Array, " n"]:
    """Returns `T^2 KL(teacher || student)` at temperature T (Hinton et al. 2015, section 2).

    Args:
      temperature: T.
      logits: of the student.
      teacher: the teacher's logits.
    """
    divergence: jax.Array = optax.kl_divergence(
        jax.nn.log_softmax(logits / temperature), jax.nn.softmax(teacher / temperature)
    )
    return temperature**2 * divergence
