"""Compiles a config's training step for accelerators that are not attached to this machine."""

import dataclasses

from flaxres.config.check import check_devices
from flaxres.config.schema import Config
from flaxres.diagnostics.compiled import CompiledFacts, compile_facts
from flaxres.diagnostics.described import described_run, lowered
from flaxres.diagnostics.topology import MEMORY, absent_devices


def plan(config: Config, topology: str) -> CompiledFacts:
    """Returns the memory and the traffic of the training step.

    Args:
      config: the settings; the dtype is bfloat16 by default.
      topology: the devices, e.g. `v5e:16x16` or `h200:8`.

    Raises:
      InputError: the compiler for them is not installed, or they don't divide the batch.
    """
    mesh = absent_devices(topology)
    model = dataclasses.replace(config.model, dtype=config.model.dtype or "bfloat16")
    config = dataclasses.replace(config, model=model)
    train = dataclasses.replace(config.train, devices=None)
    check_devices(dataclasses.replace(config, train=train), mesh.size)
    run = dataclasses.replace(described_run(config), elsewhere=mesh)
    memory = MEMORY[topology.partition(":")[0]]
    return compile_facts(lowered(run), config.train.batch_size // mesh.size, memory)
