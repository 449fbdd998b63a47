"""Losses of the training step, one value for each example."""

import jax
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
