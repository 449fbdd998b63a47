"""Which of several processes is slow. In a step that all take together its slowness is everybody's, and no log shows whose it was."""

import dataclasses
import functools
import socket
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

SIDE = 768
# How many times as slow as the others, and which share of the time without input, is told.
SLOW, LEAST_STALL = 4.0, 0.2


@dataclasses.dataclass(frozen=True)
class Pace:
    """How fast a process goes without the others: its share of time without input, and the seconds of a fixed product on its devices."""

    host: str
    stall: float
    probe: float


@functools.cache
def product() -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: jnp.linalg.norm(x @ x @ x @ x))


def pace(stall: float) -> Pace:
    """Of this process, whose devices must be idle. The slowest device counts."""
    times = []
    for device in jax.local_devices():
        square = jax.device_put(np.ones((SIDE, SIDE), np.float32), device)
        product()(square).block_until_ready()
        tries = []
        for _ in range(5):
            begun = time.perf_counter()
            product()(square).block_until_ready()
            tries.append(time.perf_counter() - begun)
        times.append(statistics.median(tries))
    return Pace(socket.gethostname(), stall, max(times))


def stragglers(paces: Sequence[Pace]) -> list[str]:
    """A line for each process that holds the others up."""
    lines = []
    for number, one in enumerate(paces):
        others = [pace for i, pace in enumerate(paces) if i != number]
        stall, probe = (
            statistics.median(pace.stall for pace in others),
            statistics.median(pace.probe for pace in others),
        )
        who = f"process {number} on {one.host} holds the others up"
        if one.stall > max(LEAST_STALL, SLOW * stall):
            waits = f"it waits {100 * one.stall:.0f}% of the time for its input, the others {100 * stall:.0f}%"
            lines.append(f"{who}: {waits}; look at its disk and its decoding")
        if one.probe > SLOW * probe:
            lines.append(
                f"{who}: a fixed product takes it {1e3 * one.probe:.1f} ms, the others {1e3 * probe:.1f} ms; look at what else runs there"
            )
    return lines
