"""Folds batch norms into the convolutions before them."""

import collections
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Var

from flaxres.errors import InputError
from flaxres.models.count import holds_equations
from flaxres.models.layers import BatchNorm, Conv
from flaxres.models.network import Network
from flaxres.weights.names import leaves, nested

Path = tuple[str, ...]
# Names of the outputs of convolutions in a trace begin so.
MARK = "convolution "


def folded(model: Network, variables: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Returns variables with the same outputs in evaluation, and fewer operations.

    In evaluation a batch norm is a product and a sum by channel (Ioffe & Szegedy 2015, section 3.1,
    algorithm 2). The product goes into the kernel, the sum becomes the norm's bias. The rest of the
    norm is then the identity, which XLA removes from a program whose weights are constants.

    Norms before convolutions (pre-activation networks, DenseNets), after a pooling (ResNet9), of
    standardised kernels, and of convolutions whose output something else reads as well stay.

    Args:
      model: a network with `scan_blocks=False`.
      variables: its variables.

    Returns:
      The variables, and the number of norms that were folded.

    Raises:
      InputError: the blocks of the network are scanned.

    Examples:
      >>> import flaxres, jax, numpy as np
      >>> model = flaxres.ResNet20(num_classes=2)
      >>> variables = model.init(jax.random.key(0), np.zeros((1, 32, 32, 3)))
      >>> folded(model, variables)[1]
      19
    """
    collections = {name: dict(leaves(tree)) for name, tree in variables.items()}
    if model.scan_blocks:
        raise InputError(
            "norms of scanned blocks are not folded: take the network and the variables of "
            "flaxres.models.stage.unroll(model, variables)"
        )
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

    Traces the network with its feature maps, recognises an output by its identity, and leaves out
    those that something else reads as well.
    """
    outputs: dict[int, tuple[Path, Any]] = {}
    pairs = []

    def watch(call: Callable[..., Any], arguments: Any, options: Any, context: Any) -> Any:
        module, is_call = context.module, context.method_name == "__call__"
        if isinstance(module, BatchNorm) and is_call and id(arguments[0]) in outputs:
            pairs.append((outputs[id(arguments[0])][0], module.path, module.epsilon))
        result = call(*arguments, **options)
        if isinstance(module, Conv) and is_call and _foldable(module):
            result = checkpoint_name(result, MARK + "/".join(module.path))
            # The result is kept alive, so that no other array gets its id.
            outputs[id(result)] = (module.path, result)
        return result

    side = model.probe_side
    images = jax.ShapeDtypeStruct((1, side, side, model.in_channels), jnp.float32)
    with nn.intercept_methods(watch):
        traced = jax.make_jaxpr(functools.partial(model.apply, features=True))(variables, images)
    readers = _readers(traced.jaxpr)
    return [pair for pair in pairs if readers[MARK + "/".join(pair[0])] == 1]


def _readers(jaxpr: Any) -> dict[str, int]:
    """Returns how often the outputs that `MARK` marks are read, in a jaxpr and in those inside."""
    counts: dict[str, int] = {}
    reads = collections.Counter(
        atom for equation in jaxpr.eqns for atom in equation.invars if isinstance(atom, Var)
    )
    reads.update(atom for atom in jaxpr.outvars if isinstance(atom, Var))
    for equation in jaxpr.eqns:
        name = equation.params.get("name", "")
        if equation.primitive.name == "name" and name.startswith(MARK):
            counts[name] = reads[equation.outvars[0]]
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=holds_equations):
            if holds_equations(inner):
                counts |= _readers(getattr(inner, "jaxpr", inner))
    return counts


def _foldable(convolution: Conv) -> bool:
    return convolution.standardise is None and not convolution.use_bias
