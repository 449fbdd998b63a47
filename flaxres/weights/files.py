"""Weight files: safetensors, shards, NumPy's archives, PyTorch's pickles, Keras's and Flax's.

No code in a file is run.
"""

import argparse
import json
import pathlib
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Shaped

from flaxres.errors import InputError
from flaxres.paths import expanded, replacing
from flaxres.weights import keras, msgpack
from flaxres.weights.names import Arrays

LARGEST_HEADER = 100 << 20
EMA = ("state_dict_ema", "model_ema", "ema_state_dict")
WRAPPERS = ("state_dict", "model", "model_state_dict")
PICKLES = (".pth", ".pt", ".th", ".tar", ".bin", ".ckpt")
FORMS = ".safetensors, .pth, .pt, .th, .npz, .h5, .keras, .msgpack, or the .index.json of shards"


class MissingFileError(InputError):
    """A folder or repository is known to lack a file."""


def optional(file: Callable[[str], pathlib.Path], name: str) -> pathlib.Path | None:
    """Returns the path of a file, None where the folder or repository is known to lack it.

    Args:
      file: returns the path of a file of a name, or raises `MissingFileError`.
      name: of the file.
    """
    try:
        return file(name)
    except MissingFileError:
        return None


def read(path: pathlib.Path, ema: bool = True) -> tuple[Arrays, dict[str, str]]:
    """Reads a file of weights.

    Args:
      path: a .safetensors, .npz or .msgpack file; a .pth, .pt, .th, .tar, .bin or .ckpt file,
        which need PyTorch; or Keras's .h5 or .keras file, which need h5py. The .index.json of
        weights in several files stands for all of them. `~` is the home folder.
      ema: read the averaged weights of a training checkpoint that has them.

    Returns:
      The arrays by their names in the file, and the file's metadata (empty but for safetensors).

    Raises:
      InputError: the file can't be read; the message gives the reason.

    Examples:
      >>> import tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "bias.safetensors")
      >>> write(path, {"fc.bias": np.zeros(3, np.float32)}, {"format": "pt"})
      >>> read(path)
      ({'fc.bias': array([0., 0., 0.], dtype=float32)}, {'format': 'pt'})
    """
    path = expanded(path)
    if not path.is_file():
        from flaxres.weights.tags import table

        if path.name in table():
            raise InputError(
                f"weights {path.name!r} are a tag and no file: write them to one by "
                "flaxres.load_pretrained and flaxres.save_weights"
            )
        raise InputError(f"weights {str(path)!r} do not exist: give one of {FORMS}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in PICKLES:
        return _read_pickle(path, ema), {}
    if path.suffix in keras.SUFFIXES:
        return keras.read(path)
    if path.suffix == ".msgpack":
        return msgpack.read(path), {}
    if path.suffix == ".npz":
        return _read_npz(path), {}
    if path.name.endswith(".index.json"):
        return _read_shards(path, ema)
    raise InputError(f"weights {str(path)!r} end in {path.suffix!r}: the rule is {FORMS}")


def _read_shards(path: pathlib.Path, ema: bool) -> tuple[Arrays, dict[str, str]]:
    """Reads the files that an index names, which lie beside it."""
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(places.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"weights {str(path)!r} can't be read ({type(error).__name__}: {error}): the rule is a "
            "JSON object whose weight_map gives the file of each array"
        ) from error
    arrays: Arrays = {}
    metadata: dict[str, str] = {}
    for shard in shards:
        file = path.parent / str(shard)
        if file.name != shard or file.suffix not in (".safetensors", *PICKLES):
            raise InputError(
                f"weights {str(path)!r} name the file {shard!r}: the rule is a file of weights "
                "beside the index"
            )
        part, found = read(file, ema)
        arrays |= part
        metadata |= found
    if missing := sorted(places.keys() - arrays.keys()):
        raise InputError(
            f"weights {str(path)!r}: no file has {missing[0]}, which the index lists, nor "
            f"{len(missing) - 1} others: download the files again"
        )
    return arrays, metadata


def _read_npz(path: pathlib.Path) -> Arrays:
    try:
        # Opened here: numpy 2.4 leaves a file open that is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"weights {str(path)!r} can't be read ({error}): the rule is an .npz archive of "
            "arrays; download them again"
        ) from error


def _read_safetensors(path: pathlib.Path) -> tuple[Arrays, dict[str, str]]:
    with path.open("rb") as file:
        start = file.read(9)
    size = path.stat().st_size
    header = struct.unpack("<Q", start[:8])[0] if len(start) == 9 else 0
    if not 0 < header <= min(LARGEST_HEADER, size - 8) or start[8:] != b"{":
        raise InputError(
            f"weights {str(path)!r} are no safetensors file, or are cut short: {size:,} bytes "
            f"with a header that claims {header:,}; download or convert them again"
        )
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            dtypes = {name: file.get_slice(name).get_dtype() for name in names}
            small = [name for name in names if dtypes[name].startswith("F8")]
            if not small:
                return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"weights {str(path)!r} can't be read ({reason}): download or convert them again"
        ) from error
    raise InputError(
        f"weights {str(path)!r}: {small[0]} is {dtypes[small[0]]}, floats of 8 bits, which have a "
        "scale elsewhere: dequantise them and save them again"
    )


def _read_pickle(path: pathlib.Path, ema: bool) -> Arrays:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise InputError(
            f"weights {str(path)!r} need PyTorch to be read: install torch, or convert them to "
            ".safetensors elsewhere"
        ) from error
    try:
        # Trainers store their options; a Namespace holds values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many types; each is a refusal
        if "TorchScript" in str(error):
            raise InputError(
                f"weights {str(path)!r} are a TorchScript archive, which holds a program: save "
                "torch.jit.load(path).state_dict() with torch.save, or load timm's tag of the same "
                "weights"
            ) from error
        reason = str(error).split("Please file an issue")[0].split("\n")[0]
        raise InputError(
            f"weights {str(path)!r} are refused, nothing in them was run: "
            f"{' '.join(reason.split())[:300]}"
        ) from error
    for wrapper in (*EMA, *WRAPPERS) if ema else WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    entries = content.items() if isinstance(content, Mapping) else ()
    tensors = {
        str(name): value.detach() for name, value in entries if isinstance(value, torch.Tensor)
    }
    for name, value in tensors.items():
        if value.is_quantized or value.is_meta or value.layout != torch.strided:
            raise InputError(
                f"weights {str(path)!r}: {name} is a quantised, sparse or empty (meta) tensor: "
                "save it as a dense tensor of floats"
            )
    if not tensors:
        raise InputError(
            f"weights {str(path)!r} hold no dictionary of tensors: save a model's state_dict()"
        )
    return {
        name: (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        for name, value in tensors.items()
    }


def write(
    path: pathlib.Path,
    arrays: Mapping[str, Shaped[np.ndarray, "..."]],
    metadata: Mapping[str, Any],
) -> None:
    """Writes a safetensors file, whole or not at all.

    Args:
      path: of the file; an existing one is replaced. `~` is the home folder.
      arrays: arrays by their names.
      metadata: values by their names; what is not a string is written as JSON.

    Raises:
      InputError: the file can't be written.
    """
    path = expanded(path)
    strings = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in metadata.items()
    }
    # safetensors would write the memory under a view: findings/safetensors_numpy_views.sh.
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    try:
        with replacing(path) as part:
            part.touch()
            mode = part.stat().st_mode
            safetensors.numpy.save_file(contiguous, part, strings)
            part.chmod(mode)  # safetensors 0.8 makes a file that only its owner can read
            _order_metadata(part)
    except OSError as error:
        raise InputError(
            f"weights can't be written to {str(path)!r} ({error.strerror}): give another path"
        ) from error


def _order_metadata(path: pathlib.Path) -> None:
    """Sorts the metadata in the header of a safetensors file.

    safetensors writes them in an order that changes from call to call, so that equal weights had
    other digests: findings/safetensors_metadata_order.sh.
    """
    with path.open("r+b") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))
