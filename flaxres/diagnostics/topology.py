"""Meshes of accelerators that are not attached: the compilers of TPUs and of CUDA need none."""

import contextlib
import importlib.metadata
import re
from typing import Any, Final, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from flaxres.errors import InputError, unknown


class Device(NamedTuple):
    """A device of JAX, by its vendor's figures.

    On TPU v3 and TPU7x, JAX's devices are the two cores of a chip, on other TPUs the chips.

    Attributes:
      gigabytes: of memory.
      bandwidth: of the memory, in bytes a second.
      peak: FLOP/s in `half`, dense.
      single: FLOP/s in float32 as XLA multiplies it by default: in TensorFloat-32 on GPUs that have
        it, in bfloat16 on TPUs.
      half: the 16-bit dtype that the device multiplies fastest.
      cores: JAX's devices of a chip.
    """

    gigabytes: float
    bandwidth: float
    peak: float
    single: float
    half: str = "bfloat16"
    cores: int = 1

    def peak_of(self, dtype: str) -> float:
        """Returns the FLOP/s of a dtype of 32 or 16 bits.

        Examples:
          >>> DEVICES["v100"].peak_of("bfloat16") / 1e12  # computed in float32 there
          15.7
        """
        slow = dtype == "float32" or (self.half == "float16" and dtype == "bfloat16")
        return self.single if slow else self.peak


# Dtype of a run on accelerators whose config names none.
DTYPE: Final = "bfloat16"
# NVIDIA's data sheets, of SXM forms where there are several; Google's pages "TPU v3" to "TPU7x".
DEVICES = {
    "v100": Device(16, 0.9e12, 125e12, 15.7e12, "float16"),
    "rtx3090": Device(24, 0.936e12, 71e12, 35.6e12),
    "rtx4090": Device(24, 1.008e12, 165e12, 82.6e12),
    "a100": Device(80, 2.039e12, 312e12, 156e12),
    "h100": Device(80, 3.35e12, 989e12, 495e12),
    "h200": Device(141, 4.8e12, 989e12, 495e12),
    "b200": Device(180, 8e12, 2250e12, 1125e12),
    "v3": Device(16, 0.45e12, 61.5e12, 61.5e12, cores=2),
    "v4": Device(32, 1.228e12, 275e12, 275e12),
    "v5e": Device(16, 0.819e12, 197e12, 197e12),
    "v5p": Device(95, 2.765e12, 459e12, 459e12),
    "v6e": Device(32, 1.64e12, 918e12, 918e12),
    "tpu7x": Device(96, 3.69e12, 1153e12, 1153e12, cores=2),
}
# JAX joins the cores of a v4 chip to a device; its description does so only with this option
# (`findings/jax_topology_v4_cores.sh`).
TPU_OPTIONS = {"v4": {"chip_config_name": "megacore"}}
LIBTPU_FOR_V6E = (0, 0, 52)
ENVIRONMENT = {
    "tpu": {"TPU_SKIP_MDS_QUERY": "1"},
    # Nothing can be timed without a device. The choice of kernels by trial is off, and so are
    # Triton's products, which exist only by trial.
    "cuda": {
        "CUDA_VISIBLE_DEVICES": "-1",
        "XLA_FLAGS": "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false",
    },
}
# What the compiler would read from an attached GPU.
GPU = {
    "fpus_per_core": 128, "shared_memory_per_block": 48 << 10, "registers_per_core_limit": 1 << 16,
    "registers_per_block_limit": 1 << 16, "threads_per_warp": 32, "threads_per_block_limit": 1024,
    "threads_per_core_limit": 2048, "block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
}  # fmt: skip
HOPPER = GPU | {
    "core_count": 132, "clock_rate_ghz": 1.98, "shared_memory_per_block_optin": 227 << 10,
    "shared_memory_per_core": 228 << 10,
}  # fmt: skip
GEFORCE = GPU | {
    "shared_memory_per_block_optin": 99 << 10, "shared_memory_per_core": 100 << 10,
    "threads_per_core_limit": 1536,
}  # fmt: skip
GPUS: dict[str, dict[str, Any]] = {
    "v100": GPU | {
        "core_count": 80, "fpus_per_core": 64, "clock_rate_ghz": 1.53, "l2_cache_size": 6 << 20,
        "shared_memory_per_block_optin": 96 << 10, "shared_memory_per_core": 96 << 10,
    },
    "rtx3090": GEFORCE | {"core_count": 82, "clock_rate_ghz": 1.7, "l2_cache_size": 6 << 20},
    "rtx4090": GEFORCE | {"core_count": 128, "clock_rate_ghz": 2.52, "l2_cache_size": 72 << 20},
    "a100": GPU | {
        "core_count": 108, "fpus_per_core": 64, "clock_rate_ghz": 1.41, "l2_cache_size": 40 << 20,
        "shared_memory_per_block_optin": 163 << 10, "shared_memory_per_core": 164 << 10,
    },
    "h100": HOPPER | {"l2_cache_size": 50 << 20},
    "h200": HOPPER | {"l2_cache_size": 60 << 20},
    "b200": HOPPER | {"core_count": 148, "clock_rate_ghz": 1.97, "l2_cache_size": 126 << 20},
}  # fmt: skip
CAPABILITY = {
    "v100": (7, 0), "rtx3090": (8, 6), "rtx4090": (8, 9), "a100": (8, 0), "h100": (9, 0),
    "h200": (9, 0), "b200": (10, 0),
}  # fmt: skip
RUNTIME = (
    'platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } runtime_version { major: 13 }'
)


def named(topology: str) -> str:
    """Returns a topology in the form `kind:size`; `8xH100` is another form of `h100:8`.

    Examples:
      >>> named("8xH100"), named("v5e:16x16")
      ('h100:8', 'v5e:16x16')
    """
    match = re.fullmatch(r"(\d+)x([a-z]\w*)", topology.lower())
    return f"{match[2]}:{match[1]}" if match else topology.lower()


def platform_of(topology: str) -> str:
    """Returns 'cuda' or 'tpu' for a topology.

    Raises:
      InputError: the name or the shape is unknown.

    Examples:
      >>> platform_of("v5e:16x16")
      'tpu'
    """
    kind, _, size = topology.partition(":")
    if kind not in DEVICES:
        shapes = dict.fromkeys(GPUS, "8") | dict.fromkeys(("v4", "v5p", "tpu7x"), "2x2x2")
        examples = [f"{name}:{shapes.get(name, '2x4')}" for name in DEVICES]
        raise unknown("topology", topology, examples)
    if not re.fullmatch(r"\d+" if kind in GPUS else r"\d+(x\d+)+", size):
        raise InputError(
            f"topology {topology!r}: the rule is a number of devices after a GPU's name, and a "
            "shape such as 16x16 or 4x4x4 after a TPU's"
        )
    return "cuda" if kind in GPUS else "tpu"


def check_compiler(topology: str) -> None:
    """Raises InputError where the compiler is known to fail.

    CUDA 13 has none for a V100. libtpu 0.0.42, which `jax[tpu]` brings, is ended by a signal while
    it compiles a ResNet-50 for a v6e.
    """
    if topology.startswith("v100") and _version("jax-cuda13-plugin"):
        raise InputError(
            f"topology {topology!r}: CUDA 13 does not compile for it; in another environment, "
            f"pip install 'jax[cuda12]=={jax.__version__}'"
        )
    libtpu = _version("libtpu")
    if not topology.startswith("v6e") or libtpu is None:
        return
    if tuple(map(int, re.findall(r"\d+", libtpu)[:3])) < LIBTPU_FOR_V6E:
        needed = ".".join(map(str, LIBTPU_FOR_V6E))
        raise InputError(
            f"topology {topology!r}: libtpu {libtpu} crashes on such programs; "
            f"pip install 'libtpu>={needed}'"
        )


def _version(package: str) -> str | None:
    """Returns the version of a package, None if it is not installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def absent_devices(topology: str) -> Mesh:
    """Returns a mesh of devices that only the compiler knows.

    `ENVIRONMENT` must be set before JAX starts.

    Raises:
      InputError: the compiler is not there, is too old, or does not know the topology.
    """
    platform = platform_of(topology)
    check_compiler(topology)
    kind, _, size = topology.partition(":")
    try:
        if platform == "tpu":
            described = topologies.get_topology_desc(
                platform="tpu", topology_name=topology, **TPU_OPTIONS.get(kind, {})
            )
        else:
            device = DEVICES[kind]
            memory = {
                "device_memory_size": int(device.gigabytes * 1e9),
                "memory_bandwidth": int(device.bandwidth),
            }
            facts = " ".join(f"{k}: {value}" for k, value in (GPUS[kind] | memory).items())
            major, minor = CAPABILITY[kind]
            capable = f"cuda_compute_capability {{ major: {major} minor: {minor} }} }} {RUNTIME}"
            name = f'device_description_str: "NVIDIA {kind.upper()}"'
            config, shape = f"gpu_device_info {{ {facts} {capable} {name}", f"1x1x{size}"
            described = topologies.get_topology_desc(
                platform="cuda", target_config=config, topology=shape
            )
    except Exception as error:
        extra = {"cuda": "jax[cuda13]", "tpu": "jax[tpu]"}[platform]
        extra = "jax[cuda12]" if kind == "v100" else extra  # CUDA 13 has no compiler for it
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"no compiler for {topology!r} ({reason}): pip install '{extra}=={jax.__version__}', "
            "or correct the shape"
        ) from error
    return Mesh(np.array(described.devices), ("data",), axis_types=(AxisType.Auto,))
