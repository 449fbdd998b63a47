"""Conversion between state dictionaries and variables, with every leaf accounted for."""

import os
import pathlib
from collections.abc import Container, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from flaxres.errors import InputError
from flaxres.models.clip import resized_positions
from flaxres.models.count import shapes
from flaxres.models.network import Network
from flaxres.models.outputs import CLASSIFIERS, HEADS, classifies
from flaxres.models.stage import stack_blocks, unstack_blocks
from flaxres.weights import files
from flaxres.weights.card import Card, from_metadata, require_same_function, to_metadata
from flaxres.weights.names import (
    LEAVES,
    TRACKED,
    Arrays,
    Path,
    cleaned,
    from_torch,
    leaves,
    nested,
    to_torch,
    torch_name,
)
from flaxres.weights.refusals import WeightsError as WeightsError, refuse

FLOATS = ("float16", "bfloat16", "float32", "float64")


def template(model: Network) -> dict[str, Any]:
    """Returns the shapes and dtypes of the model's variables, with blocks unstacked."""
    return shapes(model.clone(scan_blocks=False, parent=None))


def variables_from_torch(
    weights: Mapping[str, Shaped[np.ndarray, "..."]],
    model: Network,
    adapt: bool = False,
    source: str = "weights",
) -> dict[str, Any]:
    """Converts a state dictionary in torchvision's or timm's naming.

    Args:
      weights: arrays by PyTorch's names.
      model: the network that the variables are for.
      adapt: re-initialise a head with another number of classes, 0 included; sum or repeat a first
        convolution with another number of channels, and interpolate the positions of a
        `CLIPResNet` for another `image_size`, as timm does.
      source: subject of the error message.

    Returns:
      `{"params": ..., "batch_stats": ...}`, in the model's dtypes.

    Raises:
      WeightsError: leaves are missing, unexpected or of another shape.
      InputError: a leaf is an integer, or a float of 8 bits, which has a scale elsewhere.

    Examples:
      >>> import flaxres
      >>> model = flaxres.ResNet9(depths=(1,), widths=(4,), stem_width=4)
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
      >>> state = torch_from_variables(variables)
      >>> converted = variables_from_torch(state, model)
      >>> bool(jax.tree.all(jax.tree.map(jnp.array_equal, converted, variables)))
      True
    """
    weights = cleaned(weights)
    if adapt and not model.num_classes:
        weights = without_classes(weights, model)
    headless = adapt and not any(map(in_head, weights))
    unclassified = adapt and not classifier(weights)
    flat: dict[Path, np.ndarray | None] = {}
    missing, misshapen = [], []
    for path, leaf in leaves(template(model)):
        name, ours = torch_name(path), ".".join(path)
        array = _take(weights, path)
        if array is None:
            if (headless and path[1] in HEADS) or (unclassified and classifies(path[1:])):
                flat[path] = None
            else:
                missing.append(f"{name} ({ours})")
            continue
        _require_float(array, f"{source}: {name}")
        flat[path] = array = _fitted_array(path, array, leaf, adapt)
        if array is not None and array.shape != leaf.shape:
            misshapen.append(
                f"{name} ({ours}): {array.shape} in the file, {leaf.shape} in the model"
            )
    refuse(source, missing=missing, unexpected=sorted(weights), misshapen=misshapen)
    variables: dict[str, Any] = jax.tree.map(jnp.asarray, nested(_initialised(flat, model)))
    return stack_blocks(variables, shapes(model)) if model.scan_blocks else variables


def _initialised(flat: dict[Path, np.ndarray | None], model: Network) -> dict[Path, np.ndarray]:
    """Returns the leaves with freshly initialised ones in place of None."""
    unrolled, side = model.clone(scan_blocks=False, parent=None), model.probe_side

    @jax.jit  # which computes only the missing leaves
    def init(key: jax.Array) -> dict[str, jax.Array]:
        images = jnp.zeros((1, side, side, model.in_channels))
        initial = dict(leaves(unrolled.init(key, images)))
        return {"/".join(path): initial[path] for path, array in flat.items() if array is None}

    missing = any(array is None for array in flat.values())
    new = init(jax.random.key(0)) if missing else {}
    return {
        path: np.asarray(new["/".join(path)]) if array is None else array
        for path, array in flat.items()
    }


def _require_float(array: Shaped[np.ndarray, "..."], name: str) -> None:
    if array.dtype.name not in FLOATS:
        raise InputError(
            f"{name} is {array.dtype.name}: the rule is {', '.join(FLOATS)}; dequantise it and "
            "save it again"
        )


def _take(weights: dict[str, Any], path: Path) -> Shaped[np.ndarray, "..."] | None:
    """Removes a leaf's array and returns it; a head may have another library's name."""
    name = torch_name(path)
    aliases = HEADS if path[1] in HEADS else ()
    for candidate in (name, *(head + name.removeprefix(path[1]) for head in aliases)):
        if candidate in weights:
            array: np.ndarray = weights.pop(candidate)
            return array
    return None


def _fitted_array(
    path: Path, array: Shaped[np.ndarray, "..."], leaf: jax.ShapeDtypeStruct, adapt: bool
) -> Shaped[np.ndarray, "..."] | None:
    """Returns the array as the leaf needs it; None for classes that are to be re-initialised."""
    array = from_torch(path, array, len(leaf.shape))
    if adapt and array.shape != leaf.shape:
        if classifies(path[1:]):
            return None
        if path[-1] == "pos_embed":
            extent = round((leaf.shape[0] - 1) ** 0.5)
            return np.asarray(resized_positions(jnp.asarray(array), extent), leaf.dtype)
        array = _with_channels(array, leaf.shape)
    return array.astype(leaf.dtype)


def _with_channels(
    array: Shaped[np.ndarray, "..."], shape: tuple[int, ...]
) -> Shaped[np.ndarray, "..."]:
    """Returns a first convolution for another number of channels; other arrays as they are."""
    if array.ndim != 4 or array.shape != (*shape[:2], 3, *shape[3:]):
        return array
    if shape[2] == 1:
        summed: np.ndarray = array.sum(2, keepdims=True)
        return summed
    repeats = -(-shape[2] // 3)
    repeated: np.ndarray = np.tile(array, (1, 1, repeats, 1))[:, :, : shape[2]]
    return repeated * (3 / shape[2])


def in_head(name: str) -> bool:
    """Returns whether a name in PyTorch's naming is that of a leaf of a head.

    Examples:
      >>> in_head("head.fc.weight"), in_head("layer1.0.conv1.weight")
      (True, False)
    """
    return name.split(".")[0] in HEADS


def without_classes(weights: Mapping[str, Any], model: Network) -> dict[str, Any]:
    """Returns a state dictionary without the leaves of the head that a network lacks.

    A head may have layers before that of the classes, which a network without classes keeps.

    Examples:
      >>> import flaxres
      >>> model = flaxres.ConvNeXt(num_classes=0)
      >>> list(without_classes({"head.norm.bias": 0, "head.fc.bias": 0}, model))
      ['head.norm.bias']
    """
    wanted = {torch_name(path) for path, _ in leaves(template(model))}
    return {name: value for name, value in weights.items() if name in wanted or not in_head(name)}


def classes(weights: Mapping[str, Shaped[np.ndarray, "..."]]) -> int:
    """Returns the number of classes of a state dictionary's head, 0 if it has no head.

    Examples:
      >>> classes({"fc.weight": np.zeros((10, 64)), "fc.bias": np.zeros(10)})
      10
    """
    weights = cleaned(weights)
    layer = classifier(weights)
    return weights[f"{layer}.weight"].shape[0] if layer else 0


def classifier(names: Container[str]) -> str:
    """Returns the layer of the classes among PyTorch's names of leaves, '' if there is none.

    Examples:
      >>> classifier({"head.norm.weight", "head.fc.weight"})
      'head.fc'
    """
    return next((layer for layer in CLASSIFIERS if f"{layer}.weight" in names), "")


def torch_from_variables(variables: Mapping[str, Any]) -> Arrays:
    """Converts variables to a state dictionary that PyTorch loads with `strict=True`.

    Args:
      variables: `{"params": ..., "batch_stats": ...}`.

    Returns:
      Arrays by PyTorch's names, step counters (zero) included.
    """
    state: Arrays = {}
    for path, leaf in leaves(unstack_blocks(variables)):
        name = torch_name(path)
        state[name] = to_torch(path, np.asarray(leaf))
        if path[-1] == "mean":
            state[name.replace(LEAVES["mean"], TRACKED)] = np.zeros((), np.int64)
    return state


def load_weights(
    path: str | os.PathLike[str], model: Network, adapt: bool = False, ema: bool = True
) -> dict[str, Any]:
    """Reads weights for `model` from a file.

    Names may be torchvision's, timm's, akamaster's, transformers', Keras's, open_clip's, or the
    authors' of BiT and ConvNeXt, with a `module.` prefix or inside `state_dict`.

    Args:
      path: a safetensors file, the `.index.json` of several, a NumPy archive (`.npz`), Flax's
        `.msgpack`, PyTorch's `.pth`, `.pt` or `.th`, or Keras's `.h5` or `.keras`. PyTorch's need
        torch, and are read with `weights_only`; Keras's need h5py. `~` is the home folder.
      model: the network that the weights are for.
      adapt: re-initialise a head with another number of classes, and sum or repeat a first
        convolution with another number of channels, and interpolate positions, as timm does;
        take weights of another `output_stride`.
      ema: read the averaged weights of a training checkpoint that has them.

    Returns:
      `{"params": ..., "batch_stats": ...}`.

    Raises:
      InputError: the file can't be read, or says that its network computes another function of
        the same leaves, as with another `v1`, `shortcut` or `anti_alias`.
      WeightsError: the weights don't fit the model; its attributes have every leaf.

    Examples:
      >>> import flaxres, tempfile
      >>> model = flaxres.ResNet9(depths=(1,), widths=(4,), stem_width=4)
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
      >>> file = os.path.join(tempfile.mkdtemp(), "resnet9.safetensors")
      >>> flaxres.save_weights(file, variables, model)
      >>> loaded = flaxres.load_weights(file, model)
      >>> bool(jax.tree.all(jax.tree.map(jnp.array_equal, loaded, variables)))
      True
    """
    weights, metadata = files.read(pathlib.Path(path), ema)
    return fitted(weights, from_metadata(metadata, str(path)), path, model, adapt)


def fitted(
    weights: Mapping[str, Shaped[np.ndarray, "..."]],
    card: Card,
    path: str | os.PathLike[str],
    model: Network,
    adapt: bool,
) -> dict[str, Any]:
    """Returns what `load_weights` does, for a file that has been read.

    Args:
      weights: the arrays of the file.
      card: its metadata.
      path: of the file, for error messages.
      model, adapt: as in `load_weights`.

    Raises:
      InputError: the file says that its network computes another function of the same leaves.
      WeightsError: the weights don't fit the model.
    """
    variables = variables_from_torch(weights, model, adapt, f"weights {str(path)!r}")
    require_same_function(card, model, str(path), adapt)
    return variables


def save_weights(
    path: str | os.PathLike[str],
    variables: Mapping[str, Any],
    model: Network,
    preprocess: Any = None,
    classes: Sequence[str] = (),
    *,
    multi_label: bool = False,
) -> None:
    """Writes variables to a safetensors file in torchvision's and timm's naming.

    PyTorch loads the file with `strict=True`. The file's metadata hold the network's attributes,
    with which `load_weights` refuses a network that computes another function of the same leaves.
    With the preprocessing and the classes, `flaxres predict --weights` needs only the file.

    Args:
      path: of the file; an existing one is replaced. `~` is the home folder.
      variables: `{"params": ..., "batch_stats": ...}`.
      model: the network of the variables.
      preprocess: the network's `Preprocess`, or None.
      classes: names of the network's classes in label order.
      multi_label: images have any number of labels: the probability of a class is the sigmoid of
        its logit.

    Raises:
      InputError: the file can't be written, or the classes are not as many as the network's.
      WeightsError: the variables are not those of the network.

    Examples:
      >>> import flaxres, tempfile
      >>> model = flaxres.ResNet9(depths=(1,), widths=(4,), stem_width=4)
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
      >>> file = os.path.join(tempfile.mkdtemp(), "resnet9.safetensors")
      >>> flaxres.save_weights(file, variables, model)
      >>> files.read(pathlib.Path(file))[0]["conv1.weight"].shape
      (4, 3, 3, 3)
    """
    require_fit(variables, model, classes)
    metadata = to_metadata(model, preprocess, classes, multi_label)
    files.write(pathlib.Path(path), torch_from_variables(variables), metadata)


def require_fit(variables: Mapping[str, Any], model: Network, classes: Sequence[str]) -> None:
    """Checks that variables and names of classes are those of a network.

    Raises:
      InputError: the classes are not as many as the network's.
      WeightsError: a leaf is missing, unexpected or of another shape.
    """
    if classes and len(classes) != model.num_classes:
        raise InputError(
            f"classes has {len(classes)} names, the model {model.num_classes} outputs: give one "
            "name for each, or none"
        )
    given = {torch_name(path): leaf for path, leaf in leaves(unstack_blocks(variables))}
    wanted = {torch_name(path): leaf for path, leaf in leaves(template(model))}
    refuse(
        "variables",
        "give the model that they are of",
        missing=sorted(wanted.keys() - given.keys()),
        unexpected=sorted(given.keys() - wanted.keys()),
        misshapen=[
            f"{name}: {np.shape(given[name])} here, {leaf.shape} in the model"
            for name, leaf in wanted.items()
            if name in given and np.shape(given[name]) != leaf.shape
        ],
    )
