"""Names and axes of arrays in PyTorch and in flaxres, and prefixes of names such as `module.`.

Modules have the same names in both (see `flaxres.models.outputs.in_torch`), so only the last word
and the axes differ. Convolutions are OIHW in PyTorch and HWIO here, dense layers OI and IO; a
convolution's gains have its kernel's four axes there.
`num_batches_tracked` counts PyTorch's steps; nothing here uses it.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from flaxres.models.outputs import in_torch
from flaxres.weights.renamed import renamed

LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "v": "v",
    "gamma": "gamma",
    "gain": "gain",
    "skipinit_gain": "skipinit_gain",
    "pos_embed": "pos_embed",
    "mean": "running_mean",
    "var": "running_var",
}
AXES = {4: (3, 2, 0, 1), 3: (2, 1, 0), 2: (1, 0)}  # ours -> PyTorch's, of a kernel
TRACKED = "num_batches_tracked"
AVERAGED = "n_averaged"
WRAPPED = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.")

Path = tuple[str, ...]
Arrays = dict[str, Shaped[np.ndarray, "..."]]
"""A state dictionary: arrays of any shape by their names."""


def leaves(tree: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yields the leaves of a nested dictionary with their paths.

    Examples:
      >>> list(leaves({"params": {"fc": {"bias": 1}}}))
      [(('params', 'fc', 'bias'), 1)]
    """
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value


def nested(flat: Mapping[Path, Any]) -> dict[str, Any]:
    """Returns the nested dictionary with the given leaves; the inverse of `leaves`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        branch = tree
        for name in path[:-1]:
            branch = branch.setdefault(name, {})
        branch[path[-1]] = value
    return tree


def torch_name(path: Path) -> str:
    """Returns PyTorch's name of a leaf.

    Examples:
      >>> torch_name(("params", "layer1", "0", "conv1", "kernel"))
      'layer1.0.conv1.weight'
    """
    return in_torch(".".join((*path[1:-1], LEAVES[path[-1]])))


def to_torch(path: Path, array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Returns a leaf of the variables with PyTorch's axes.

    Examples:
      >>> to_torch(("params", "conv1", "kernel"), np.zeros((7, 7, 3, 64))).shape
      (64, 3, 7, 7)
    """
    if path[-1] == "gain":
        return array.reshape(-1, 1, 1, 1)
    if path[-1] != "kernel":
        return array
    return np.ascontiguousarray(array.transpose(AXES[array.ndim]))


def from_torch(
    path: Path, array: Shaped[np.ndarray, "..."], ndim: int
) -> Shaped[np.ndarray, "..."]:
    """Returns PyTorch's array with our axes.

    Args:
      path: of the leaf in the variables.
      array: PyTorch's array of that leaf.
      ndim: number of axes of the leaf. A dense head is accepted for a 1x1 convolution (4 axes),
        and a 1x1 convolution for a dense head (2 axes).

    Examples:
      >>> from_torch(("params", "fc", "kernel"), np.zeros((10, 64, 1, 1)), ndim=2).shape
      (64, 10)
    """
    if path[-1] == "gain":
        return array.reshape(-1)
    if path[-1] != "kernel":
        return array
    if array.ndim == 2 and ndim == 4:
        array = array[:, :, None, None]
    if array.ndim == 4 and ndim == 2 and array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0]
    return array.transpose(np.argsort(AXES[array.ndim])) if array.ndim in AXES else array


def cleaned(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a state dictionary by its bare names.

    The prefixes of wrappers (`DataParallel`, `torch.compile`, Lightning modules and the like, in
    any order), step counters and the counter of `torch.optim.swa_utils.AveragedModel` are dropped.
    Names that other libraries give to the same layers are replaced, see `flaxres.weights.renamed`.

    Examples:
      >>> list(cleaned({"_orig_mod.module.bn1.bias": 0, "n_averaged": 5}))
      ['bn1.bias']
    """
    weights = {name: value for name, value in weights.items() if name != AVERAGED}
    while prefix := _common_prefix(weights):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return renamed({name: value for name, value in weights.items() if not name.endswith(TRACKED)})


def _common_prefix(names: Iterable[str]) -> str:
    """Returns the wrapper's prefix that all names have, '' if there is none."""
    names = list(names)
    common = (prefix for prefix in WRAPPED if all(name.startswith(prefix) for name in names))
    return next(common, "") if names else ""
