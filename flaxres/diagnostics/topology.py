"""Meshes of accelerators that are not attached: the compilers of TPUs and of CUDA need none."""

import contextlib
import importlib.metadata
import re

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from flaxres.errors import InputError, unknown

# Gigabytes of one device.
MEMORY = {"h200": 141, "v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}
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
# What the compiler would read from an attached H200.
H200 = {
    "core_count": 132, "fpus_per_core": 128, "clock_rate_ghz": 1.98,
    "device_memory_size": 150_000_000_000, "memory_bandwidth": 4_800_000_000_000,
    "l2_cache_size": 60 << 20, "shared_memory_per_block": 48 << 10,
    "shared_memory_per_block_optin": 227 << 10, "shared_memory_per_core": 228 << 10,
    "registers_per_core_limit": 1 << 16, "registers_per_block_limit": 1 << 16,
    "threads_per_warp": 32, "threads_per_block_limit": 1024, "threads_per_core_limit": 2048,
    "block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 2**16 - 1, "block_dim_limit_z": 2**16 - 1,
}  # fmt: skip
HOPPER = (
    'cuda_compute_capability { major: 9 } } platform_name: "CUDA" '
    "dnn_version_info { major: 9 minor: 10 } runtime_version { major: 13 }"
)


def platform_of(topology: str) -> str:
    """Returns 'cuda' or 'tpu' for a topology.

    Raises:
      InputError: the name or the shape is unknown.

    Examples:
      >>> platform_of("v5e:16x16")
      'tpu'
    """
    kind, _, size = topology.partition(":")
    if kind not in MEMORY:
        examples = [f"{name}:{'8' if name == 'h200' else '2x4'}" for name in MEMORY]
        raise unknown("topology", topology, examples)
    if not re.fullmatch(r"\d+" if kind == "h200" else r"\d+(x\d+)+", size):
        raise InputError(
            f"topology {topology!r}: the rule is a number of devices after h200:, and a shape such "
            "as 16x16 or 4x4x4 after a TPU's name"
        )
    return "cuda" if kind == "h200" else "tpu"


def check_compiler(topology: str) -> None:
    """Raises InputError for v6e where libtpu is too old.

    0.0.42, which `jax[tpu]` brings, is ended by a signal while it compiles a ResNet-50.
    """
    if not topology.startswith("v6e"):
        return
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version("libtpu")
        if tuple(map(int, re.findall(r"\d+", version)[:3])) < LIBTPU_FOR_V6E:
            needed = ".".join(map(str, LIBTPU_FOR_V6E))
            raise InputError(
                f"topology {topology!r}: libtpu {version} crashes on such programs; "
                f"pip install 'libtpu>={needed}'"
            )


def absent_devices(topology: str) -> Mesh:
    """Returns a mesh of devices that only the compiler knows.

    `ENVIRONMENT` must be set before JAX starts.

    Raises:
      InputError: the compiler is not there, is too old, or does not know the topology.
    """
    platform = platform_of(topology)
    check_compiler(topology)
    try:
        if platform == "tpu":
            described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
        else:
            facts = " ".join(f"{name}: {value}" for name, value in H200.items())
            config = f'gpu_device_info {{ {facts} {HOPPER} device_description_str: "NVIDIA H200"'
            shape = f"1x1x{topology.partition(':')[2]}"
            described = topologies.get_topology_desc(
                platform="cuda", target_config=config, topology=shape
            )
    except Exception as error:
        extra = {"cuda": "jax[cuda13]", "tpu": "jax[tpu]"}[platform]
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"no compiler for {topology!r} ({reason}): pip install '{extra}=={jax.__version__}', "
            "or correct the shape"
        ) from error
    return Mesh(np.array(described.devices), ("data",), axis_types=(AxisType.Auto,))
