"""A run on accelerators that are not attached: whether it fits, and how long it takes at least."""

import dataclasses
import math
from typing import NamedTuple

from flaxres.config.check import check_devices
from flaxres.config.schema import Config
from flaxres.diagnostics.compiled import CompiledFacts, compile_facts
from flaxres.diagnostics.described import described_run, lowered
from flaxres.diagnostics.topology import DEVICES, DTYPE, Device, absent_devices, named
from flaxres.errors import InputError
from flaxres.models.count import multiply_accumulates
from flaxres.training.run import Run

# ResNet-50's step on one H200, of what its memory's bandwidth allows: docs/scaling.md.
MEASURED_SHARE = 0.59
# Forward, gradient of the input, gradient of the kernel.
PASSES = 3


class Plan(NamedTuple):
    """A compiled step, and the rates of its run.

    Attributes:
      compiled: the compiled step.
      rates: `traffic_bound` and `arithmetic_bound` in images a second, the `expected` rate, the
        run's `images` and `epochs`, and the `hours` that it takes at the expected rate; `dollars`
        with a price, and `cores` with the rate of a core.
    """

    compiled: CompiledFacts
    rates: dict[str, float]


def plan(
    config: Config, topology: str, price: float | None = None, decode: float | None = None
) -> Plan:
    """Compiles the training step, and bounds its rate by the data sheet of the devices.

    The bound is the lower of two: bytes that the compiled step moves over the bandwidth of the
    memory, and three passes of multiply-accumulates over the peak. It leaves out the input,
    evaluation and checkpoints, communication that the step does not hide, and what kernels lose:
    the expected rate is `MEASURED_SHARE` of it.

    Args:
      config: the settings; without a dtype, that of a run on accelerators: bfloat16.
      topology: the devices, e.g. `v5e:16x16`, `h200:8` or `8xH100`.
      price: of a device, in dollars an hour.
      decode: images that a core decodes a second.

    Raises:
      InputError: the compiler for them is not installed, they don't divide the batch, or nothing
        is known of the dtype's rate.
    """
    topology = named(topology)
    if config.model.dtype == "float64":
        raise InputError(
            "model.dtype='float64': a plan knows the rates of float32, bfloat16 and float16 alone; "
            "set model.dtype=float32"
        )
    mesh = absent_devices(topology)
    device = DEVICES[topology.partition(":")[0]]
    model = dataclasses.replace(config.model, dtype=config.model.dtype or DTYPE)
    config = dataclasses.replace(config, model=model)
    train = dataclasses.replace(config.train, devices=None)
    check_devices(dataclasses.replace(config, train=train), mesh.size)
    run = dataclasses.replace(described_run(config), elsewhere=mesh)
    images = config.train.batch_size // mesh.size
    compiled = compile_facts(lowered(run), images, device.gigabytes)
    megabytes = compiled.figures["megabytes_per_image"]
    found = rates(run, device, mesh.size, megabytes)
    if price is not None:
        found["dollars"] = found["hours"] * mesh.size * price
    if decode is not None:
        found["cores"] = math.ceil(found["expected"] / decode)
    return Plan(compiled, found)


def rates(run: Run, device: Device, count: int, megabytes: float) -> dict[str, float]:
    """Returns the rates of a run and its time, see `Plan`.

    Args:
      run: the run.
      device: one of its devices.
      count: number of devices.
      megabytes: that the step moves for an image.
    """
    flops = 2 * PASSES * multiply_accumulates(run.model, run.config.data.image_size)
    peak = device.peak_of(run.config.model.dtype or DTYPE)
    bounds = {
        "traffic_bound": count * device.bandwidth / (megabytes * 1e6),
        "arithmetic_bound": count * peak / flops,
    }
    expected = MEASURED_SHARE * min(bounds.values())
    images = run.steps * run.config.train.batch_size
    return bounds | {
        "expected": expected,
        "images": images,
        "epochs": images / len(run.train),
        "hours": images / expected / 3600,
    }
