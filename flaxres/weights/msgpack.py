"""Weights that Flax's `to_bytes` wrote, such as the `flax_model.msgpack` of Hugging Face."""

import pathlib
from collections.abc import Mapping
from typing import Any

import flax.serialization
import jax
import numpy as np
from jaxtyping import Shaped

from flaxres.errors import InputError

Arrays = dict[str, Shaped[np.ndarray, "..."]]
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
AXES = {4: (3, 2, 0, 1), 2: (1, 0)}


def read(path: pathlib.Path) -> Arrays:
    """Reads a file of Flax variables with `params` and `batch_stats`.

    Args:
      path: a .msgpack file.

    Returns:
      The arrays by PyTorch's names of the same layers, with its axes.

    Raises:
      InputError: the file can't be read, or holds something else.
    """
    try:
        content: Any = flax.serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # the unpacker raises many types; each is a refusal
        raise InputError(
            f"weights {str(path)!r} can't be read ({type(error).__name__}: {error}): the rule is a "
            "file that flax.serialization wrote; download it again"
        ) from error
    tree = content if isinstance(content, Mapping) else {}
    tree = {name: tree[name] for name in ("params", "batch_stats") if name in tree} or tree
    arrays: Arrays = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        *outer, last = (str(key.key) for key in keys)
        outer = outer[1:] if outer and outer[0] in ("params", "batch_stats") else outer
        if last not in LEAVES or not isinstance(leaf, np.ndarray):
            raise InputError(
                f"weights {str(path)!r} have a leaf {'.'.join((*outer, last))!r}: the rule is "
                f"arrays named {', '.join(LEAVES)}"
            )
        axes = AXES.get(leaf.ndim) if last == "kernel" else None
        arrays[".".join((*outer, LEAVES[last]))] = leaf.transpose(axes) if axes else leaf
    if not arrays:
        raise InputError(f"weights {str(path)!r} hold no arrays: save a model's variables")
    return arrays
