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


def label_weights(
    counts: Int[np.ndarray, " classes"], examples: int, power: float
) -> Float[np.ndarray, " classes"]:
    """Returns weights of classes where they are one of several labels, PyTorch's `pos_weight`.

    A power of 1 gives the number of examples without a label divided by that of those with it: both
    then count the same in the binary cross entropy. A class that no example has weighs 1.

    Args:
      counts: the number of examples that have each class.
      examples: the number of all examples.
      power: of the ratio.

    Examples:
      >>> label_weights(np.array([50, 10, 0]), 100, 1.0).tolist()
      [1.0, 9.0, 1.0]
    """
    ratios = (examples - counts) / np.maximum(counts, 1)
    return np.asarray(np.where(counts > 0, ratios, 1.0) ** power)


def example_losses(
    optim: OptimConfig,
    logits: Float[Array, "n classes"],
    targets: Float[Array, "n classes"],
    weights: Float[np.ndarray, " classes"] | None = None,
) -> Float[Array, " n"]:
    """Returns the loss that `optim.loss` names, in nats.

    The binary losses are those of Wightman et al. 2021, section 2.2.

    Args:
      optim: the settings.
      logits: of the network.
      targets: a distribution over the classes, or for binary losses a number in [0, 1] for each.
      weights: what a class counts where it is the target; None is 1 for all.

    Examples:
      >>> import jax.numpy as jnp
      >>> logits, targets = jnp.zeros((1, 2)), jnp.array([[0.0, 1.0]])
      >>> round(float(example_losses(OptimConfig(), logits, targets)[0]), 4)
      0.6931
    """
    scale = None if weights is None else weights.astype(targets.dtype)
    if optim.loss == "cross_entropy":
        targets = targets if scale is None else targets * scale
        cross_entropy: jax.Array = optax.softmax_cross_entropy(logits, targets)
        return cross_entropy
    if optim.binary_threshold is not None:
        targets = (targets > optim.binary_threshold).astype(logits.dtype)
    binary: jax.Array = optax.sigmoid_binary_cross_entropy(logits, targets)
    if scale is not None:
        binary += (scale - 1) * targets * jax.nn.softplus(-logits)
    return binary.mean(-1) if optim.loss == "binary" else binary.sum(-1)


def probabilities(
    logits: Float[Array, "*n classes"], multi_label: bool
) -> Float[Array, "*n classes"]:
    """Returns the probabilities of the classes.

    Args:
      logits: of the network.
      multi_label: images have any number of labels: each class is likely or not by itself, by the
        sigmoid. Otherwise the classes exclude each other, and their probabilities add up to 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> probabilities(jnp.zeros(4), False).tolist(), probabilities(jnp.zeros(2), True).tolist()
      ([0.25, 0.25, 0.25, 0.25], [0.5, 0.5])
    """
    return jax.nn.sigmoid(logits) if multi_label else jax.nn.softmax(logits)


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
