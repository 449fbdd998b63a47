"""Compiles a config's training step for accelerators that are not attached to this machine."""

import dataclasses

from flaxres.config.check import check_devices
from flaxres.config.schema import Config
from flaxres.diagnostics.compiled import MEMORY, absent_devices, compile_facts
from flaxres.diagnostics.described import described_run, lowered


def plan(
    config: Config, topology: str
) -> tuple[dict[str, float], dict[str, int], list[tuple[str, float, int]]]:
    """What the training step moves and holds on devices that are not here, `v5e:16x16` or `h200:8`; see `flaxres.diagnostics.compiled.compile_facts`.

    Raises InputError where the compiler for them is not installed, or where they don't divide the batch.
    """
    mesh = absent_devices(topology)
    chosen = dataclasses.replace(
        config, model=dataclasses.replace(config.model, dtype=config.model.dtype or "bfloat16")
    )
    check_devices(
        dataclasses.replace(chosen, train=dataclasses.replace(chosen.train, devices=None)),
        mesh.size,
    )
    run = dataclasses.replace(described_run(chosen), elsewhere=mesh)
    return compile_facts(
        lowered(run), chosen.train.batch_size // mesh.size, MEMORY[topology.partition(":")[0]]
    )
