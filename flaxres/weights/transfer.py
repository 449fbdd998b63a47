"""Weights between files and variables: every leaf accounted for, by both of its names."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxres.errors import InputError
from flaxres.models.blocks import stack_blocks, unstack_blocks
from flaxres.models.network import Network
from flaxres.weights import files
from flaxres.weights.names import TRACKED, cleaned, from_torch, leaves, nested, to_torch, torch_name

SHOWN = 3
HEADS = ("fc", "linear", "classifier", "head")


class WeightsError(InputError):
    """Weights that don't fit a model. The message shows some of the leaves; the attributes have all of them, missing ones by both names."""

    def __init__(
        self,
        message: str,
        missing: tuple[str, ...],
        unexpected: tuple[str, ...],
        misshapen: tuple[str, ...],
    ) -> None:
        super().__init__(message)
        self.missing, self.unexpected, self.misshapen = missing, unexpected, misshapen


def template(model: Network) -> dict[str, Any]:
    """Shapes and dtypes of the model's variables, blocks unstacked."""
    images = jnp.zeros((1, 64, 64, model.in_channels), jnp.float32)
    return dict(
        jax.eval_shape(model.clone(scan_blocks=False, parent=None).init, jax.random.key(0), images)
    )


def variables_from_torch(
    weights: Mapping[str, np.ndarray], model: Network, adapt: bool = False, source: str = "weights"
) -> dict[str, Any]:
    """A state dictionary in torchvision's or timm's naming -> `{"params", "batch_stats"}` for `model`.

    With `adapt`, a head for other classes is left out and born anew, and a first convolution for other channels is summed or repeated as timm does.
    Raises WeightsError that names missing, unexpected and misshapen leaves.
    """
    weights, wanted = cleaned(weights), template(model)
    flat, missing, misshapen = {}, [], []
    for path, leaf in leaves(wanted):
        name, ours = torch_name(path), ".".join(path)
        if (array := weights.pop(name, None)) is None and path[1] in HEADS:
            alias = next(
                (head for head in HEADS if head + name.removeprefix(path[1]) in weights), None
            )
            array = weights.pop(f"{alias}{name.removeprefix(path[1])}") if alias else None
        if array is None:
            missing.append(f"{name} ({ours})")
            continue
        array = from_torch(path, array, leaf.ndim)
        if adapt and array.shape != leaf.shape:
            array = adapted(path, array, leaf.shape)
        if array is not None and array.shape != leaf.shape:
            misshapen.append(
                f"{name} ({ours}): {array.shape} in the file, {leaf.shape} in the model"
            )
        flat[path] = array if array is None else array.astype(leaf.dtype)
    findings = ("missing", missing), ("unexpected", sorted(weights)), ("misshapen", misshapen)
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:SHOWN])}{', ...' if names[SHOWN:] else ''}"
        for kind, names in findings
        if names
    ]
    if problems:
        message = f"{source} don't fit the model; {'; '.join(problems)}: give the model that they are of (adapt=True resets the head)"
        raise WeightsError(message, **{kind: tuple(names) for kind, names in findings})
    if any(array is None for array in flat.values()):
        born = dict(
            leaves(
                model.clone(scan_blocks=False, parent=None).init(
                    jax.random.key(0), jnp.zeros((1, 64, 64, model.in_channels))
                )
            )
        )
        flat = {
            path: np.asarray(born[path]) if array is None else array for path, array in flat.items()
        }
    variables = jax.tree.map(jnp.asarray, nested(flat))
    return stack_blocks(variables) if model.scan_blocks else variables


def classes(weights: Mapping[str, np.ndarray]) -> int:
    """How many classes the head of a state dictionary has; 0 where it has no head."""
    weights = cleaned(weights)
    names = [name for name in weights if name.split(".")[0] in HEADS and name.endswith(".weight")]
    return weights[names[0]].shape[0] if names else 0


def adapted(path: tuple[str, ...], array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """A first convolution for another number of channels; None for a head of other classes; the array itself otherwise."""
    if path[1] in HEADS:
        return None
    if (
        array.ndim == 4
        and array.shape[:2] == shape[:2]
        and array.shape[3] == shape[3]
        and array.shape[2] == 3
    ):
        if shape[2] == 1:
            return array.sum(2, keepdims=True)
        repeats = -(-shape[2] // 3)
        return np.tile(array, (1, 1, repeats, 1))[:, :, : shape[2]] * (3 / shape[2])
    return array


def torch_from_variables(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """`{"params", "batch_stats"}` -> a state dictionary that PyTorch loads strictly, step counters included."""
    state: dict[str, np.ndarray] = {}
    for path, leaf in leaves(unstack_blocks(variables)):
        state[torch_name(path)] = to_torch(path, np.asarray(leaf))
        if path[-1] == "mean":
            state[".".join((*path[1:-1], TRACKED))] = np.zeros((), np.int64)
    return state


def load_weights(
    path: str | os.PathLike[str], model: Network, adapt: bool = False, ema: bool = True
) -> dict[str, Any]:
    """Reads weights for `model`: safetensors, or PyTorch's `.pth`, `.pt`, `.th` (which need torch, and are read with `weights_only`).

    Names may be torchvision's, timm's or akamaster's, with a `module.` prefix or inside `state_dict`; of a training checkpoint the EMA is taken
    unless `ema` is False. Returns `{"params", "batch_stats"}`. `adapt` as in `variables_from_torch`.

    Raises InputError for a file that can't be read, and WeightsError, with every leaf, for one that doesn't fit.
    """
    return fitted(files.read(pathlib.Path(path), ema), path, model, adapt)


def fitted(
    content: tuple[Mapping[str, np.ndarray], Mapping[str, str]],
    path: str | os.PathLike[str],
    model: Network,
    adapt: bool,
) -> dict[str, Any]:
    """`load_weights` of what `files.read` gave of the file at `path`."""
    weights, metadata = content
    stated, v1 = metadata.get("flaxres.v1"), str(getattr(model, "v1", False))
    if stated is not None and stated != v1:
        raise InputError(
            f"weights {str(path)!r} are of a network with v1={stated}, the model has v1={v1}: create it with v1={stated}"
        )
    return variables_from_torch(weights, model, adapt, f"weights {str(path)!r}")


def save_weights(
    path: str | os.PathLike[str], variables: Mapping[str, Any], model: Network
) -> None:
    """Writes safetensors in torchvision's and timm's naming; PyTorch loads them with `strict=True`. Raises InputError where it can't be written."""
    metadata = {"format": "pt", "flaxres.v1": str(getattr(model, "v1", False))}
    files.write(pathlib.Path(path), torch_from_variables(variables), metadata)
