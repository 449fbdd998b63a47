"""What XLA is told when it compiles a step of a network."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh


def compiler_options(mesh: Mesh | None = None, deterministic: bool = False) -> dict[str, Any]:
    """XLA's options for a step over `mesh`, by default on JAX's first device: `jax.jit(step, compiler_options=flaxres.compiler_options())`.

    On CPUs one for convolutions; on GPUs that the gradients of several devices are summed at once, and, if `deterministic`, that each run gives the
    same bits; on TPUs none.
    """
    platform, devices = (
        (jax.default_backend(), 1) if mesh is None else (mesh.devices.flat[0].platform, mesh.size)
    )
    if platform == "cpu":
        return cpu_options()
    if platform not in ("gpu", "cuda"):
        return {}
    # XLA joins the reductions of gradients in pieces of 30 MB by default.
    options: dict[str, Any] = (
        {"xla_gpu_all_reduce_combine_threshold_bytes": 1 << 30} if devices > 1 else {}
    )
    return options | ({"xla_gpu_deterministic_ops": True} if deterministic else {})


@functools.cache
def cpu_options() -> dict[str, Any]:
    """Convolutions by Eigen, on all cores, where XLA's CPU compiler has YNNPACK, which takes one for most; products and sums stay with it.

    The option is experimental: where the compiler does not know it, nothing.
    """
    options = {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    }
    try:
        jax.jit(jnp.negative, compiler_options=options)(0.0)
    except jax.errors.JaxRuntimeError:
        return {}
    return options
