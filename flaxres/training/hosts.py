"""Several processes of one run: they join, compare facts, wait for each other and vote.

All of it does nothing where there is one process.
"""

import collections
import functools
import itertools
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from flaxres.errors import InputError
from flaxres.training import gloo
from flaxres.training.mesh import place, replicated, split

Result = TypeVar("Result")

# Seconds without a sign of life after which a process counts as dead, and the others end too.
HEARTBEAT = 10
PREPARE_SECONDS = 7 * 24 * 3600
# Environment variables by which a cluster tells that this process is one of several.
# `jax.distributed.initialize` gets the rest from each of these clusters.
CLUSTERS: Mapping[str, Callable[[str], bool]] = {
    "SLURM_STEP_NUM_TASKS": lambda value: int(value) > 1,
    "OMPI_COMM_WORLD_SIZE": lambda value: int(value) > 1,
    "TPU_WORKER_HOSTNAMES": lambda value: "," in value,
    "MEGASCALE_COORDINATOR_ADDRESS": bool,
}
VOTES_BEHIND = 2
# All processes pass the same barriers in the same order, so that a number tells them apart.
barriers = itertools.count()


def join(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Joins the other processes of the run, before anything is computed.

    Without arguments and variables it asks the cluster: Slurm, Open MPI and Cloud TPU. Kubernetes
    and others set `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`.

    Args:
      coordinator: "host:port" of process 0.
      processes: the number of processes.
      process: the number of this one.

    Raises:
      InputError: the arguments don't fit together, or the other processes can't be reached.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    processes = number("JAX_NUM_PROCESSES") if processes is None else processes
    process = number("JAX_PROCESS_ID") if process is None else process
    given = (coordinator, processes, process)
    if any(value is not None for value in given):
        if coordinator is None or processes is None or process is None:
            raise InputError(
                "--coordinator HOST:PORT, --processes N and --process I go together: give all "
                "three, or none in a cluster that JAX knows"
            )
        if ":" not in coordinator:
            raise InputError(f"--coordinator={coordinator!r}: the rule is HOST:PORT, of process 0")
        if not 0 <= process < processes:
            raise InputError(
                f"--process={process}: the rule is 0 <= process < {processes}, the number of "
                "processes"
            )
        if processes == 1:
            return
        options: dict[str, Any] = {
            "coordinator_address": coordinator,
            "num_processes": processes,
            "process_id": process,
        }
        # Without this the coordinator would listen on every address of its machine.
        options["coordinator_bind_address"] = coordinator if process == 0 else None
        # Otherwise, within Slurm or Open MPI, each process would take one device only.
        options["cluster_detection_method"] = "deactivate"
    elif any(
        name in os.environ and several(os.environ[name]) for name, several in CLUSTERS.items()
    ):
        options = {}
    else:
        return
    # JAX's handler would swallow SIGTERM before training listens to it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**options, heartbeat_timeout_seconds=HEARTBEAT)
        with gloo.patient():
            jax.local_devices()
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"can't join the other processes: {' '.join(str(error).split())}"
        ) from error


def number(name: str) -> int | None:
    """Reads a whole number from the environment, None where the variable is not set."""
    value = os.environ.get(name)
    if value is not None and not value.isdigit():
        raise InputError(f"${name}={value!r}: the rule is a whole number, >= 0")
    return None if value is None else int(value)


def leader() -> bool:
    """Returns True in the process that writes the logs and the curves, the first."""
    return jax.process_index() == 0


def wait_for_all(name: str, seconds: int = PREPARE_SECONDS) -> None:
    """Waits until all processes are here, at most `seconds`.

    The coordinator tells it, not a collective, which would give up within a minute.
    """
    if jax.process_count() == 1:
        return
    import orbax.checkpoint as ocp

    ocp.multihost.get_barrier_sync_fn()(
        key=f"flaxres {next(barriers)}: {name}", timeout_ms=1000 * seconds
    )


def gather(value: Any) -> list[Any]:
    """Returns the JSON value of each process, in their order, in all of them."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(len(text))))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(text)] = text
    rows = np.reshape(multihost_utils.process_allgather(padded), (len(sizes), -1))
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def leader_first(function: Callable[[], Result]) -> Result:
    """Calls `function` in the first process, then in the others, which see what it wrote.

    Raises:
      InputError: in all processes, where one of them refused.
    """
    if jax.process_count() == 1:
        return function()
    results: list[Result] = []
    refusal = ""
    if not leader():
        wait_for_all("first process is ready")
    try:
        results.append(function())
    except InputError as error:
        refusal = str(error)
    if leader():
        wait_for_all("first process is ready")
    refusals = gather(refusal)
    for number, text in enumerate(refusals):
        if text:
            raise InputError(text if all(refusals) else f"process {number}: {text}")
    return results[0]


def require_same(facts: Mapping[str, Any]) -> None:
    """Compares JSON values between the processes.

    Raises:
      InputError: some are not the same in all processes; the message names up to five.
    """
    everyone = gather(dict(facts))
    first = everyone[0]
    for number, theirs in enumerate(everyone):
        different = [name for name in facts if theirs.get(name) != first.get(name)]
        if different:
            details = "; ".join(
                f"{name}: {first.get(name)!r} in process 0, {theirs.get(name)!r} in process "
                f"{number}"
                for name in different[:5]
            )
            raise InputError(
                f"the processes of a run must be alike, but differ in {details}: start all with "
                "the same command, code and data"
            )


class Votes:
    """Tells all processes at the same step that one of them was asked to stop.

    A vote is a sum over the devices, dispatched beside the step. It is read `VOTES_BEHIND` votes
    later, so that no process waits for another.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh, self.alone = mesh, jax.process_count() == 1
        self.pending: collections.deque[jax.Array] = collections.deque()

    @functools.cached_property
    def total(self) -> Any:
        """The jitted sum over the devices."""
        return jax.jit(
            lambda votes: votes.sum(),
            in_shardings=split(self.mesh),
            out_shardings=replicated(self.mesh),
        )

    def __call__(self, stop: bool) -> bool:
        """Casts this process's vote; returns True if a process had voted to stop by the vote
        that is read now."""
        if self.alone:
            return stop
        votes = place(np.full(self.mesh.size, stop, np.int32), split(self.mesh))
        self.pending.append(self.total(votes))
        return len(self.pending) > VOTES_BEHIND and int(self.pending.popleft()) > 0
