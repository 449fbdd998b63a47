"""XLA's options for the steps of a network."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh


def compiler_options(mesh: Mesh | None = None, deterministic: bool = False) -> dict[str, Any]:
    """Returns XLA's options for a step over a mesh, for `jax.jit(step, compiler_options=...)`.

    On CPUs they choose the library of convolutions. On GPUs the gradients of several devices are
    summed at once. On TPUs there are none.

    Args:
      mesh: the devices; JAX's first device by default.
      deterministic: on GPUs, each run gives the same bits.

    Examples:
      >>> step = jax.jit(lambda x: 2 * x, compiler_options=compiler_options())
      >>> float(step(1.5))
      3.0
    """
    platform, devices = jax.default_backend(), 1
    if mesh is not None:
        platform, devices = mesh.devices.flat[0].platform, mesh.size
    if platform == "cpu":
        return _cpu_options()
    if platform not in ("gpu", "cuda"):
        return {}
    options: dict[str, Any] = {}
    if devices > 1:
        # XLA joins the reductions of gradients in pieces of 30 MB by default.
        options["xla_gpu_all_reduce_combine_threshold_bytes"] = 1 << 30
    if deterministic:
        options["xla_gpu_deterministic_ops"] = True
    return options


@functools.cache
def _cpu_options() -> dict[str, Any]:
    """Returns the option by which Eigen computes convolutions, on all cores.

    Where XLA's CPU compiler has YNNPACK, that takes one core for most; products and sums stay with
    it. The option is experimental: {} where the compiler does not know it.
    """
    fusions = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    options = {"xla_cpu_experimental_ynn_fusion_type": fusions}
    try:
        jax.jit(jnp.negative, compiler_options=options)(0.0)
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def options_of_one_call(mesh: Mesh) -> dict[str, Any]:
    """Returns XLA's options for a program over a mesh that runs once.

    On CPUs it is optimised less, with the same numbers: the first state of a ResNet-20 is then
    compiled in 0.9 s in place of 2.6 (`findings/xla_cpu_random_init_compile.sh`).
    """
    on_cpus = mesh.devices.flat[0].platform == "cpu"
    return {"xla_backend_optimization_level": 1} if on_cpus else {}
