"""Weights that Flax's `to_bytes` wrote, such as the `flax_model.msgpack` of Hugging Face."""

import pathlib
from collections.abc import Mapping
from typing import Any

import flax.serialization
import numpy as np

from flaxres.errors import InputError
from flaxres.models.stage import unstack_blocks
from flaxres.weights.names import LEAVES, Arrays, leaves, to_torch, torch_name

COLLECTIONS = ("params", "batch_stats")


def read(path: pathlib.Path) -> Arrays:
    """Reads a file of Flax variables, `params` and `batch_stats`.

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
    if not set(tree) & set(COLLECTIONS):
        tree = {"params": tree}
    arrays: Arrays = {}
    for keys, leaf in leaves(unstack_blocks({name: tree.get(name, {}) for name in COLLECTIONS})):
        name = ".".join(map(str, keys[1:]))
        if keys[-1] not in LEAVES or not isinstance(leaf, np.ndarray):
            raise InputError(
                f"weights {str(path)!r} have a leaf {name!r}, a {type(leaf).__name__}: the rule is "
                f"arrays named {', '.join(LEAVES)}"
            )
        keys = tuple(map(str, keys))
        arrays[torch_name(keys)] = to_torch(keys, leaf)
    if not arrays:
        raise InputError(f"weights {str(path)!r} hold no arrays: save a model's variables")
    return arrays
