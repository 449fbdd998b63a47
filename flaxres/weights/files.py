"""Files of weights: safetensors, and PyTorch's own through `weights_only`. Nothing in a file is ever executed."""

import json
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from flaxres.errors import InputError

LARGEST_HEADER = 100 << 20
EMA = ("state_dict_ema", "model_ema", "ema_state_dict")
WRAPPERS = ("state_dict", "model", "model_state_dict")


def read(path: pathlib.Path, ema: bool = True) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a file by their names there, and its metadata; raises InputError with the reason for a file that can't be read."""
    if not path.is_file():
        raise InputError(
            f"weights {str(path)!r} do not exist: give a .safetensors, .pth, .pt or .th file"
        )
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors":
        return read_safetensors(path, start)
    if path.suffix in (".pth", ".pt", ".th", ".tar", ".bin"):
        return read_pickle(path, ema), {}
    raise InputError(
        f"weights {str(path)!r} end in {path.suffix!r}: the rule is .safetensors, .pth, .pt or .th"
    )


def read_safetensors(
    path: pathlib.Path, start: bytes
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    size = path.stat().st_size
    header = struct.unpack("<Q", start[:8])[0] if len(start) == 9 else 0
    if not 0 < header <= min(LARGEST_HEADER, size - 8) or start[8:] != b"{":
        raise InputError(
            f"weights {str(path)!r} are no safetensors file, or cut short: {size:,} bytes with a header that claims {header:,}; get it anew"
        )
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        raise InputError(
            f"weights {str(path)!r} can't be read ({' '.join(str(error).split())}): get the file anew"
        ) from error


def read_pickle(path: pathlib.Path, ema: bool) -> dict[str, np.ndarray]:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise InputError(
            f"weights {str(path)!r} need PyTorch to be read: install torch, or convert them to .safetensors elsewhere"
        ) from error
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many kinds; each is a refusal
        reason = str(error).split("Please file an issue")[0].split("\n")[0]
        raise InputError(
            f"weights {str(path)!r} are refused, nothing in them was run: {' '.join(reason.split())[:300]}"
        ) from error
    for wrapper in (*EMA, *WRAPPERS) if ema else WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not any(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        raise InputError(
            f"weights {str(path)!r} hold no dictionary of tensors: save a model's state_dict()"
        )
    tensors = {
        str(name): value.detach()
        for name, value in content.items()
        if isinstance(value, torch.Tensor)
    }
    return {
        name: (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        for name, value in tensors.items()
    }


def write(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> None:
    """Writes safetensors, whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        safetensors.numpy.save_file(
            dict(arrays),
            part,
            {
                key: value if isinstance(value, str) else json.dumps(value)
                for key, value in metadata.items()
            },
        )
        part.replace(path)
    except OSError as error:
        raise InputError(
            f"weights can't be written to {str(path)!r} ({error.strerror}): give another path"
        ) from error
