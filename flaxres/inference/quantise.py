"""Kernels in 8 bits, for exports."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LEVELS = 127


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantised:
    """A kernel as 8-bit integers times a step for each output channel.

    Attributes:
      whole: the integers, (..., out) int8.
      step: (out,) float32.
    """

    whole: np.ndarray
    step: np.ndarray


def by_output_channel(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns a kernel (..., out) in int8, and the step (out,) of each output channel."""
    largest = abs(kernel).max(tuple(range(kernel.ndim - 1)))
    step = np.maximum(largest, 1e-12) / LEVELS
    return np.rint(kernel / step).astype(np.int8), step


def in_8_bits(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the variables with every kernel in 8 bits, symmetric and by output channel.

    Jacob et al. 2018, section 2.1, with a zero point of 0.

    Examples:
      >>> kernel = {"params": {"fc": {"kernel": np.array([[-1.0, 0.5]])}}}
      >>> in_floats(in_8_bits(kernel))["params"]["fc"]["kernel"].tolist()
      [[-1.0, 0.5]]
    """

    def quantise(path: Any, leaf: Any) -> Any:
        if path[-1].key != "kernel":
            return leaf
        whole, step = by_output_channel(np.asarray(leaf, np.float32))
        return Quantised(whole, step.astype(np.float32))

    quantised: dict[str, Any] = jax.tree_util.tree_map_with_path(quantise, dict(variables))
    return quantised


def in_floats(variables: Any) -> Any:
    """Returns the variables with 8-bit kernels as float32."""

    def is_quantised(leaf: Any) -> bool:
        return isinstance(leaf, Quantised)

    def dequantise(leaf: Any) -> Any:
        if not is_quantised(leaf):
            return leaf
        return jnp.asarray(leaf.whole).astype(jnp.float32) * leaf.step

    return jax.tree.map(dequantise, variables, is_leaf=is_quantised)
