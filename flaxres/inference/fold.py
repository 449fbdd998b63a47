"""Folds batch norms into the convolutions before them."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxres.models.layers import BatchNorm, Conv
from flaxres.models.network import Network
from flaxres.weights.names import leaves, nested

Path = tuple[str, ...]


def folded(model: Network, variables: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Returns variables with the same outputs in evaluation, and fewer operations.

    In evaluation a batch norm is a product and a sum by channel (Ioffe & Szegedy 2015, section 3.1,
    algorithm 2). The product goes into the kernel, the sum becomes the norm's bias. The rest of the
    norm is then the identity, which XLA removes from a program whose weights are constants.

    Norms before convolutions (pre-activation networks, DenseNets), after a pooling (ResNet9) and of
    standardised kernels stay.

    Args:
      model: a network with `scan_blocks=False`.
      variables: its variables.

    Returns:
      The variables, and the number of norms that were folded.

    Examples:
      >>> import flaxres, jax, numpy as np
      >>> model = flaxres.ResNet20(num_classes=2)
      >>> variables = model.init(jax.random.key(0), np.zeros((1, 32, 32, 3)))
      >>> folded(model, variables)[1]
      19
    """
    collections = {name: dict(leaves(tree)) for name, tree in variables.items()}
    pairs = convolutions_before_norms(model, variables)
    for convolution, norm, epsilon in pairs:
        _fold(collections, convolution, norm, epsilon)
    return {name: nested(tree) for name, tree in collections.items()}, len(pairs)


def _fold(
    collections: dict[str, dict[Path, Any]], convolution: Path, norm: Path, epsilon: float
) -> None:
    """Folds one norm, in float64."""
    params, statistics = collections["params"], collections["batch_stats"]
    mean, var = (np.asarray(statistics[(*norm, name)], np.float64) for name in ("mean", "var"))
    scale, bias = (np.asarray(params[(*norm, name)], np.float64) for name in ("scale", "bias"))
    kernel = np.asarray(params[(*convolution, "kernel")], np.float64)
    factor = scale / np.sqrt(var + epsilon)
    new = {
        (*convolution, "kernel"): kernel * factor,
        (*norm, "scale"): np.ones_like(scale),
        (*norm, "bias"): bias - mean * factor,
    }
    for path, value in new.items():
        params[path] = value.astype(params[path].dtype)
    statistics[(*norm, "mean")] = np.zeros_like(statistics[(*norm, "mean")])
    statistics[(*norm, "var")] = np.full_like(statistics[(*norm, "var")], 1 - epsilon)


def convolutions_before_norms(
    model: Network, variables: Mapping[str, Any]
) -> list[tuple[Path, Path, float]]:
    """Returns the paths of each convolution and of the batch norm of its output, and its epsilon.

    Traces the network, and recognises an output by its identity.
    """
    outputs: dict[int, tuple[Path, Any]] = {}
    pairs = []

    def watch(call: Callable[..., Any], arguments: Any, options: Any, context: Any) -> Any:
        module, is_call = context.module, context.method_name == "__call__"
        if isinstance(module, BatchNorm) and is_call and id(arguments[0]) in outputs:
            pairs.append((outputs[id(arguments[0])][0], module.path, module.epsilon))
        result = call(*arguments, **options)
        if isinstance(module, Conv) and is_call and _foldable(module):
            # The result is kept alive, so that no other array gets its id.
            outputs[id(result)] = (module.path, result)
        return result

    images = jax.ShapeDtypeStruct((1, 64, 64, model.in_channels), jnp.float32)
    with nn.intercept_methods(watch):
        jax.eval_shape(model.apply, variables, images)
    return pairs


def _foldable(convolution: Conv) -> bool:
    return convolution.standardise is None and not convolution.use_bias
