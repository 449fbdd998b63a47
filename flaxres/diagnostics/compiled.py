"""What a compiled step moves and holds, and meshes of devices that are not here: the compilers of TPUs and of CUDA need none."""

import collections
import contextlib
import importlib.metadata
import math
import re
import time
from typing import Any, NamedTuple

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
    # Without a device nothing can be timed: the choice of kernels by trial is off, and so are Triton's products, which exist only by trial.
    "cuda": {
        "CUDA_VISIBLE_DEVICES": "-1",
        "XLA_FLAGS": "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false",
    },
}
# What the compiler would ask a present H200.
H200 = {
    "core_count": 132, "fpus_per_core": 128, "clock_rate_ghz": 1.98,
    "device_memory_size": 150_000_000_000, "memory_bandwidth": 4_800_000_000_000, "l2_cache_size": 60 << 20,
    "shared_memory_per_block": 48 << 10, "shared_memory_per_block_optin": 227 << 10, "shared_memory_per_core": 228 << 10,
    "registers_per_core_limit": 1 << 16, "registers_per_block_limit": 1 << 16,
    "threads_per_warp": 32, "threads_per_block_limit": 1024, "threads_per_core_limit": 2048,
    "block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 2**16 - 1, "block_dim_limit_z": 2**16 - 1,
}  # fmt: skip
HOPPER = 'cuda_compute_capability { major: 9 } } platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } runtime_version { major: 13 }'

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
STILL = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
}  # instructions that move nothing
SLICES = {"slice", "dynamic-slice"}
FUSED = {
    "convolution": "convolution",
    "reduce": "reduction",
}  # the first that a fusion contains -> kind


def platform_of(topology: str) -> str:
    """'cuda' or 'tpu' for `h200:8`, `v5e:16x16` and the like; raises InputError for a name that is none."""
    kind, _, size = topology.partition(":")
    if kind not in MEMORY:
        raise unknown(
            "topology", topology, [f"{name}:{'8' if name == 'h200' else '2x4'}" for name in MEMORY]
        )
    if not re.fullmatch(r"\d+" if kind == "h200" else r"\d+(x\d+)+", size):
        raise InputError(
            f"topology {topology!r}: the rule is a number of devices after h200:, and a shape such as 16x16 or 4x4x4 after a TPU's name"
        )
    return "cuda" if kind == "h200" else "tpu"


def check_compiler(topology: str) -> None:
    """Raises InputError for v6e where libtpu is too old: 0.0.42, which `jax[tpu]` brings, is ended by a signal while it compiles a ResNet-50."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found = importlib.metadata.version("libtpu")
        if (
            topology.startswith("v6e")
            and tuple(map(int, re.findall(r"\d+", found)[:3])) < LIBTPU_FOR_V6E
        ):
            needed = ".".join(map(str, LIBTPU_FOR_V6E))
            raise InputError(
                f"topology {topology!r}: libtpu {found} crashes on such programs; pip install 'libtpu>={needed}'"
            )


def absent_devices(topology: str) -> Mesh:
    """A mesh of devices that only the compiler knows. Before JAX starts, `ENVIRONMENT` must be set.

    Raises InputError where the compiler is not there, is too old, or does not know the topology.
    """
    platform = platform_of(topology)
    check_compiler(topology)
    try:
        if platform == "tpu":
            found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
        else:
            facts = " ".join(f"{name}: {value}" for name, value in H200.items())
            config = f'gpu_device_info {{ {facts} {HOPPER} device_description_str: "NVIDIA H200"'
            found = topologies.get_topology_desc(
                platform="cuda", target_config=config, topology=f"1x1x{topology.partition(':')[2]}"
            )
    except Exception as error:
        extra = {"cuda": "jax[cuda13]", "tpu": "jax[tpu]"}[platform]
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"no compiler for {topology!r} ({reason}): pip install '{extra}=={jax.__version__}', or correct the shape"
        ) from error
    return Mesh(np.array(found.devices), ("data",), axis_types=(AxisType.Auto,))


def array_bytes(kind: str, outside: bool = True) -> int:
    """Bytes of an HLO type, `bf16[128,56,56,64]{3,2,1,0}` or a tuple of such. `outside`: without those whose layout says S(1), inside a TPU."""
    found = re.findall(r"([a-z]+)(\d*)\w*\[([\d,]*)\](\{[^}]*\})?", kind)
    return sum(
        math.prod(map(int, filter(None, shape.split(",")))) * max(int(bits or 8) // 8, 1)
        for _, bits, shape, layout in found
        if not (outside and "S(1)" in layout)
    )


class Instruction(NamedTuple):
    """One line of an HLO computation; `kind` is the type of its result."""

    name: str
    kind: str
    operation: str
    operands: list[str]
    line: str


def computations(program: str) -> dict[str, list[Instruction]]:
    """An HLO program's computations by name; the one that is run is 'ENTRY'."""
    found: dict[str, list[Instruction]] = {}
    for header, body in re.findall(
        r"^((?:ENTRY )?%[\w.-]+) \(.*\{\n((?:.*\n)*?)\}", program, re.MULTILINE
    ):
        lines = found["ENTRY" if header.startswith("ENTRY") else header.removeprefix("%")] = []
        for line in body.splitlines():
            if parts := re.match(r"\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)", line):
                name, kind, operation, rest = parts.groups()
                lines.append(
                    Instruction(
                        name, kind, operation, re.findall(r"%([\w.-]+)", rest.split("), ")[0]), line
                    )
                )
    return found


def sliced_bytes(computation: list[Instruction]) -> dict[int, int]:
    """Of the parameters that a computation only takes slices of, by number: the bytes of those, at most all once."""
    found = {}
    for parameter in computation:
        users = (
            [each for each in computation if parameter.name in each.operands]
            if parameter.operation == "parameter"
            else []
        )
        if users and all(
            each.operation in SLICES and each.operands[0] == parameter.name for each in users
        ):
            number = int(parameter.line.partition(" parameter(")[2].partition(")")[0])
            found[number] = min(
                sum(array_bytes(each.kind) for each in users), array_bytes(parameter.kind)
            )
    return found


def kind_of_kernel(each: Instruction, fused: list[Instruction]) -> str:
    """`fused`: what a fusion consists of."""
    if each.operation == "custom-call" and (
        called := re.search(r'custom_call_target="([^"]+)"', each.line)
    ):
        return called[1]
    if each.operation == "fusion":
        parts = {part.operation for part in fused}
        copies = any(word in each.name for word in ("copy", "transpose"))
        return "fusion: " + next(
            (kind for part, kind in FUSED.items() if part in parts),
            "copy" if copies else "elementwise",
        )
    return each.operation.removesuffix("-done")


def traffic(program: str) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """Bytes that the kernels of an optimised program read and write, as if nothing stayed in a cache, and the number of kernels, by kind."""
    found = computations(program)
    sizes: dict[str, int] = {}
    moved, count = collections.Counter[str](), collections.Counter[str]()
    for each in found["ENTRY"]:
        sizes[each.name] = array_bytes(each.kind)
        if each.operation in STILL or each.operation.endswith("-start"):
            continue
        called = re.search(r" calls=%([\w.-]+)", each.line)
        fused = found[called[1]] if called else []
        label = kind_of_kernel(each, fused)
        count[label] += 1
        if each.operation.endswith(
            "-done"
        ):  # an asynchronous copy, to or from the inside: its length once
            moved[label] += array_bytes(each.kind, outside=False)
            continue
        less = {0: sizes[each.name]} if each.operation in SLICES else sliced_bytes(fused)
        reads = (less.get(i, sizes.get(operand, 0)) for i, operand in enumerate(each.operands))
        moved[label] += sizes[each.name] + sum(reads)
    return moved, count


def collectives(program: str) -> dict[str, int]:
    """How often each kind of communication stands in a program."""
    counts = {kind: len(re.findall(rf" {kind}(?:-start)?\(", program)) for kind in COLLECTIVES}
    return {kind: count for kind, count in counts.items() if count}


def compile_facts(
    lowered: Any, images: int, gigabytes: float
) -> tuple[dict[str, float], dict[str, int], list[tuple[str, float, int]]]:
    """Compiles a step of `images` a device: figures, collectives by kind, and (kind of kernel, megabytes an image, how many), the largest first."""
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    program, memory, cost = compiled.as_text(), compiled.memory_analysis(), compiled.cost_analysis()
    moved, count = traffic(program)
    cost_model = (
        {
            "megabytes_per_image": cost["bytes accessed"] / images / 1e6,
            "gigaflop_per_image": cost["flops"] / images / 1e9,
        }
        if cost
        else {}
    )
    held = (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )
    kinds = collectives(program)
    figures = {
        "megabytes_per_image": sum(moved.values()) / images / 1e6,
        **cost_model,
        "temporary_gigabytes": memory.temp_size_in_bytes / 1e9,
        "memory_gigabytes": held / 1e9,
        "fits": float(held < gigabytes * 1e9),
        "collectives": sum(kinds.values()),
        "compile_seconds": seconds,
    }
    return (
        figures,
        kinds,
        [(kind, size / images / 1e6, count[kind]) for kind, size in moved.most_common(10)],
    )
