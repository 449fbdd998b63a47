"""Flags with which XLA compiles fast for the CPU, for programs that compile much and run little.

This module imports no JAX, since XLA reads its flags before the first computation.
"""

import os
from importlib.metadata import version


def flags(level: int, devices: int = 1) -> str:
    """Returns a value of `XLA_FLAGS`: these flags, then those that the environment has now.

    The emitters of fusions take half of the time of compiling. jaxlib 0.11 and later do not know
    the flag that turns them off, and an unknown flag ends the process.

    Args:
      level: LLVM's level of optimisation. Level 0 compiles in half the time of level 1.
      devices: number of CPU devices.

    Examples:
      >>> flags(level=1).split()[0]
      '--xla_force_host_platform_device_count=1'
    """
    chosen = [
        f"--xla_force_host_platform_device_count={devices}",
        f"--xla_backend_optimization_level={level}",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
    if version("jaxlib") < "0.11":
        chosen.append("--xla_cpu_use_fusion_emitters=false")
    if level == 0:
        chosen.append("--xla_llvm_disable_expensive_passes=true")
    # The last of two equal flags counts.
    return " ".join([*chosen, os.environ.get("XLA_FLAGS", "")])
