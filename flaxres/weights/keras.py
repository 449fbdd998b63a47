"""Files of Keras's ResNets.

Keras pads, strides and orders channels as flaxres does where this module takes a file; what
computes another function is refused by name. h5py reads the files.
"""

import importlib
import io
import pathlib
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

from flaxres.errors import InputError
from flaxres.weights.card import V1
from flaxres.weights.names import Arrays, to_torch

Layers = dict[str, Arrays]
SUFFIXES = (".h5", ".hdf5", ".keras")
INNER = "model.weights.h5"  # in a .keras archive
# Variables of a layer in their order, by their number.
VARIABLES = {
    1: ("kernel",),
    2: ("kernel", "bias"),
    4: ("gamma", "beta", "moving_mean", "moving_variance"),
}
NEEDED = {"conv": ("kernel",), "bn": VARIABLES[4]}
LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# The epsilon of batch norm in keras.applications is larger than ours by this.
EPSILON = 1.001e-5 - 1e-5


def read(path: pathlib.Path) -> tuple[Arrays, dict[str, str]]:
    """Reads a file of one of Keras's ResNets.

    Args:
      path: what `model.save` or `model.save_weights` wrote, a .keras, .weights.h5 or .h5 file of
        keras.applications' ResNet50, 101 or 152, or of a KerasHub ResNet.

    Returns:
      The arrays by timm's names, and metadata as of a file of weights.

    Raises:
      InputError: the file can't be read, or holds another network; the message says which.
    """
    layers = layers_of(path)
    if not layers:
        raise InputError(f"weights {str(path)!r} hold no layers: save a model's weights")
    applications = any(re.match(r"conv\d_block", name) for name in layers)
    if "post_bn" in layers and applications:
        raise InputError(
            f"weights {str(path)!r} are of Keras's ResNetV2, which strides in the last block of a "
            "stage and not in the first: no network of flaxres computes that; take timm's "
            "resnetv2_50, or KerasHub's resnet_v2_50_imagenet"
        )
    if "res2a_branch2a" in layers:
        raise InputError(
            f"weights {str(path)!r} are of the ResNet50 of Keras before 2.2.4, whose batch norm "
            "has another epsilon: download those of today's keras.applications"
        )
    arrays = in_torchs_form(layers, str(path))
    bottlenecks = "layer1.0.conv3.weight" in arrays
    return arrays, {V1: str(applications)} if bottlenecks else {}


def layers_of(path: pathlib.Path) -> Layers:
    """Returns the arrays of each layer by the names that Keras gives them."""
    try:
        h5py = importlib.import_module("h5py")
    except ModuleNotFoundError as error:
        raise InputError(f"weights {str(path)!r} need h5py to be read: pip install h5py") from error
    try:
        content = io.BytesIO(_inner(path)) if path.suffix == ".keras" else path.open("rb")
        with content, h5py.File(content, "r") as file:
            return dict(_named(h5py, file))
    except Exception as error:  # both libraries raise many types; each is a refusal
        raise InputError(
            f"weights {str(path)!r} can't be read ({' '.join(str(error).split())}): the rule is a "
            "file that Keras wrote; save or download it again"
        ) from error


def _inner(path: pathlib.Path) -> bytes:
    """Returns the weights in a .keras archive."""
    with zipfile.ZipFile(path) as archive:
        return archive.read(INNER)


def _named(h5py: Any, file: Any) -> Iterator[tuple[str, Arrays]]:
    """Yields the layers of an HDF5 file with their names and arrays."""
    groups: dict[str, dict[str, Any]] = {}

    def visit(place: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            # Neither may lead out of the file.
            if item.is_virtual or item.external:
                raise ValueError(f"{place} is stored outside of the file")
            outer, _, name = place.rpartition("/")
            groups.setdefault(outer, {})[name] = item[()]

    file.visititems(visit)  # follows no link to another file
    numbered = "layers" in file
    for place, arrays in groups.items():
        if not numbered and not place.startswith("optimizer_weights"):
            layer = place.removeprefix("model_weights/").partition("/")[0]
            yield layer, {name.partition(":")[0]: array for name, array in arrays.items()}
        elif re.fullmatch(r"(layers/[^/]+/)+vars", place) and len(arrays) in VARIABLES:
            ordered = (arrays[number] for number in sorted(arrays, key=int))
            name = str(file[place].attrs.get("name", place))
            yield name, dict(zip(VARIABLES[len(arrays)], ordered, strict=True))


def in_torchs_form(layers: Mapping[str, Arrays], source: str) -> Arrays:
    """Returns the arrays of layers by timm's names, with PyTorch's axes.

    Only keras.applications has biases before batch norms; they become part of the means.

    Args:
      layers: arrays by Keras's names of layers and variables.
      source: of the layers, for error messages.

    Raises:
      InputError: a layer has a name that Keras's ResNets don't have.
    """
    stems = sum(bool(re.fullmatch(r"conv\d_conv", name)) for name in layers)
    preactivated = "post_bn" in layers
    state: Arrays = {}
    for layer, arrays in layers.items():
        name = _timms_name(layer, stems, preactivated)
        needed = NEEDED.get(layer.rpartition("_")[2], ("kernel", "bias"))
        if name is None or not set(needed) <= arrays.keys() <= LEAVES.keys():
            raise InputError(
                f"weights {source!r} are of Keras, with a layer {layer!r} of "
                f"{', '.join(sorted(arrays))}: the rule is a ResNet of keras.applications or "
                "KerasHub with Keras's names of layers"
            )
        if layer.endswith("_conv"):
            arrays = {"kernel": arrays["kernel"]}
        bias = layers.get(f"{layer.removesuffix('_bn')}_conv", {}).get("bias")
        if layer.endswith("_bn") and bias is not None:
            mean, var = arrays["moving_mean"] - bias, arrays["moving_variance"] + EPSILON
            arrays = arrays | {"moving_mean": mean, "moving_variance": var.astype(mean.dtype)}
        state |= {f"{name}.{LEAVES[key]}": to_torch((key,), array) for key, array in arrays.items()}
    return state


def _timms_name(layer: str, stems: int, preactivated: bool) -> str | None:
    """Returns timm's name of a layer, None for one that Keras's ResNets don't have."""
    if layer == "predictions":
        return "head.fc" if preactivated else "fc"
    if layer == "post_bn":
        return "norm"
    if match := re.fullmatch(r"conv(\d)_(conv|bn)", layer):
        number, kind = int(match[1]), match[2]
        if preactivated:
            return "stem.conv" if stems == 1 else f"stem.{kind.replace('bn', 'norm')}{number}"
        if stems == 1 or (kind == "bn" and number == stems):
            return f"{kind}1"
        return f"conv1.{3 * (number - 1) + (kind == 'bn')}"
    # Blocks: keras.applications count stages from 2 and blocks from 1, KerasHub both from 0.
    match = re.fullmatch(r"(?:conv|stack)(\d)_block(\d+)_(\d|pre_activation)_(conv|bn)", layer)
    if match is None:
        return None
    first = (2, 1) if layer.startswith("conv") else (0, 0)
    stage, block = int(match[1]) - first[0], int(match[2]) - first[1]
    part, kind = match[3], match[4]
    if preactivated:
        outer = f"stages.{stage}.blocks.{block}"
        if part == "pre_activation":
            return f"{outer}.norm1"
        if part == "0":
            return f"{outer}.downsample.conv"
        return f"{outer}.conv{part}" if kind == "conv" else f"{outer}.norm{int(part) + 1}"
    outer = f"layer{stage + 1}.{block}"
    if part == "0":
        averaged = stems > 1  # timm counts the average of a shortcut as a layer
        return f"{outer}.downsample.{averaged + (kind == 'bn')}"
    return f"{outer}.{kind}{part}"
