"""Finds the slow one of several processes.

In a step that all take together, the slowness of one delays all, and no log shows which one it was.
"""

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
# A process is named if it is this many times as slow as the others, and if it waits for input for
# more than this share of the time.
SLOW, LEAST_STALL = 4.0, 0.2


@dataclasses.dataclass(frozen=True)
class Pace:
    """The speed of a process without the others.

    Attributes:
      host: its name.
      stall: share of the time that it waits for input.
      probe: seconds of a fixed matrix product on its slowest device.
    """

    host: str
    stall: float
    probe: float


@functools.cache
def _product() -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: jnp.linalg.norm(x @ x @ x @ x))


def pace(stall: float) -> Pace:
    """Measures this process, whose devices must be idle; `stall` goes into the result."""
    times = []
    for device in jax.local_devices():
        square = jax.device_put(np.ones((SIDE, SIDE), np.float32), device)
        _product()(square).block_until_ready()
        tries = []
        for _ in range(5):
            start = time.perf_counter()
            _product()(square).block_until_ready()
            tries.append(time.perf_counter() - start)
        times.append(statistics.median(tries))
    return Pace(socket.gethostname(), stall, max(times))


def stragglers(paces: Sequence[Pace]) -> list[str]:
    """Returns a line for each process that holds the others up.

    Examples:
      >>> stragglers([Pace("a", 0.9, 0.01), Pace("b", 0.0, 0.01)])[0].partition(";")[0]
      'process 0 on a holds the others up: it waits 90% of the time for its input, the others 0%'
    """
    lines = []
    for number, one in enumerate(paces):
        others = [pace for i, pace in enumerate(paces) if i != number]
        stall = statistics.median(pace.stall for pace in others)
        probe = statistics.median(pace.probe for pace in others)
        start = f"process {number} on {one.host} holds the others up"
        if one.stall > max(LEAST_STALL, SLOW * stall):
            lines.append(
                f"{start}: it waits {100 * one.stall:.0f}% of the time for its input, the others "
                f"{100 * stall:.0f}%; look at its disk and its decoding"
            )
        if one.probe > SLOW * probe:
            lines.append(
                f"{start}: a fixed product takes it {1e3 * one.probe:.1f} ms, the others "
                f"{1e3 * probe:.1f} ms; look at what else runs there"
            )
    return lines
