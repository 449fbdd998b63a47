"""PyTorch's names and layouts of arrays, and ours. Modules have the same names in both, so only the last word and the axes differ.

Convolutions are OIHW there and HWIO here, dense layers OI and IO. `num_batches_tracked` counts PyTorch's steps; nothing here uses it.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
AXES = {4: (3, 2, 0, 1), 3: (2, 1, 0), 2: (1, 0)}  # ours -> PyTorch's, of a kernel
TRACKED = "num_batches_tracked"
# DenseNet files from before 2018 say `norm.1` where newer ones say `norm1`.
OLD_DENSENET = re.compile(r"(denselayer\d+)\.(norm|relu|conv)\.(\d)\.")

Path = tuple[str, ...]


def leaves(tree: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(path, leaf) of a nested dictionary."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value


def nested(flat: Mapping[Path, Any]) -> dict[str, Any]:
    """The inverse of `leaves`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        branch = tree
        for name in path[:-1]:
            branch = branch.setdefault(name, {})
        branch[path[-1]] = value
    return tree


def torch_name(path: Path) -> str:
    """`("params", "layer1", "0", "conv1", "kernel")` -> `layer1.0.conv1.weight`."""
    return ".".join((*path[1:-1], LEAVES[path[-1]]))


def to_torch(path: Path, array: np.ndarray) -> np.ndarray:
    """A leaf of ours with PyTorch's axes."""
    return (
        np.ascontiguousarray(array.transpose(AXES[array.ndim])) if path[-1] == "kernel" else array
    )


def from_torch(path: Path, array: np.ndarray, ndim: int) -> np.ndarray:
    """PyTorch's array with our axes; a dense head and a 1x1 convolution are taken for each other."""
    if path[-1] != "kernel":
        return array
    if array.ndim == 2 and ndim == 4:
        array = array[:, :, None, None]
    if array.ndim == 4 and ndim == 2 and array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0]
    return array.transpose(np.argsort(AXES[array.ndim])) if array.ndim in AXES else array


def cleaned(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights by their bare names: without a wrapper's prefix, without step counters, with DenseNet's newer names."""
    for prefix in ("module.", "_orig_mod.", "model."):
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return {
        OLD_DENSENET.sub(r"\1.\2\3.", name): value
        for name, value in weights.items()
        if not name.endswith(TRACKED)
    }
