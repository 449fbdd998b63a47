"""Several processes, one run: how they find each other, make sure that they run the same, and agree on what happens to one of them.

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

from flaxres.config.schema import SETTINGS, Config, flat
from flaxres.errors import InputError
from flaxres.training.mesh import place, replicated, split

Result = TypeVar("Result")

# Seconds after which a process that does not answer counts as dead, and takes the others down.
HEARTBEAT = 10
PREPARE_SECONDS = 7 * 24 * 3600
# What says that a cluster started this process as one of several; `jax.distributed.initialize` knows how to ask each of them.
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
    """Joins the other processes of the run: by `coordinator` ("host:port" of process 0), their number and this one's, or as a cluster says.

    Slurm, Open MPI, Cloud TPU and Kubernetes (with `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`, `JAX_PROCESS_ID`) are understood. Must come before
    anything is computed. Raises InputError for flags that don't fit together, or where the others can't be reached.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    processes = number("JAX_NUM_PROCESSES") if processes is None else processes
    process = number("JAX_PROCESS_ID") if process is None else process
    given = (coordinator, processes, process)
    if any(value is not None for value in given):
        if coordinator is None or processes is None or process is None:
            raise InputError(
                "--coordinator HOST:PORT, --processes N and --process I go together: give all three, or none in a cluster that JAX knows"
            )
        if ":" not in coordinator:
            raise InputError(f"--coordinator={coordinator!r}: the rule is HOST:PORT, of process 0")
        if not 0 <= process < processes:
            raise InputError(
                f"--process={process}: the rule is 0 <= process < {processes}, the number of processes"
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
    # JAX's own answer to SIGTERM would swallow it before training listens.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**options, heartbeat_timeout_seconds=HEARTBEAT)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the other processes can't be joined: {' '.join(str(error).split())}"
        ) from error


def number(name: str) -> int | None:
    """A whole number of the environment, None where it is not there."""
    value = os.environ.get(name)
    if value is not None and not value.isdigit():
        raise InputError(f"${name}={value!r}: the rule is a whole number, >= 0")
    return None if value is None else int(value)


def leader() -> bool:
    """Whether this process writes the logs and pictures."""
    return jax.process_index() == 0


def wait_for_all(name: str, seconds: int = PREPARE_SECONDS) -> None:
    """Waits for the coordinator's word, not by a collective, which would give up within a minute."""
    if jax.process_count() == 1:
        return
    import orbax.checkpoint as ocp

    ocp.multihost.get_barrier_sync_fn()(
        key=f"flaxres {next(barriers)}: {name}", timeout_ms=1000 * seconds
    )


def gather(value: Any) -> list[Any]:
    """A JSON value of each process, in their order, on all of them."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(len(text))))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(text)] = text
    rows = np.reshape(multihost_utils.process_allgather(padded), (len(sizes), -1))
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def together(function: Callable[[], Result]) -> Result:
    """`function` on the first process and then on all others, who find what it has written; refused on one, it is refused on all."""
    if jax.process_count() == 1:
        return function()
    result, refusal = None, ""
    if not leader():
        wait_for_all("first process is ready")
    try:
        result = function()
    except InputError as error:
        refusal = str(error)
    if leader():
        wait_for_all("first process is ready")
    refusals = gather(refusal)
    for number, text in enumerate(refusals):
        if text:
            raise InputError(text if all(refusals) else f"process {number}: {text}")
    assert result is not None
    return result


def require_same(facts: Mapping[str, Any]) -> None:
    """Refuses, by name, facts that are not the same in all processes."""
    everyone = gather(dict(facts))
    for number, theirs in enumerate(everyone):
        different = [name for name in facts if theirs.get(name) != everyone[0].get(name)]
        if different:
            told = "; ".join(
                f"{name}: {everyone[0].get(name)!r} in process 0, {theirs.get(name)!r} in process {number}"
                for name in different[:5]
            )
            raise InputError(
                f"the processes of a run must be alike, but differ in {told}: start all with the same command, code and data"
            )


def facts(config: Config, origin: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same in all processes: settings, versions, code and data. `origin`: the provenance of the run."""
    settings = {
        name: repr(value) for name, value in flat(config).items() if not SETTINGS[name].facts.local
    }
    return (
        settings
        | dict(origin["packages"])
        | {
            name: origin[name]
            for name in ("flaxres", "code", "python", "data", "evaluation", "classes")
        }
    )


class Votes:
    """Whether any process was asked to stop, known to all of them at the same step.

    A vote is a sum over the devices, dispatched beside the step and read `VOTES_BEHIND` votes later, so that no process waits for another.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh, self.alone = mesh, jax.process_count() == 1
        self.cast: collections.deque[jax.Array] = collections.deque()

    @functools.cached_property
    def total(self) -> Any:
        return jax.jit(
            lambda votes: votes.sum(),
            in_shardings=split(self.mesh),
            out_shardings=replicated(self.mesh),
        )

    def __call__(self, asked: bool) -> bool:
        """Casts this process's vote; returns whether somebody had been asked as of the vote that is read now."""
        if self.alone:
            return asked
        self.cast.append(
            self.total(place(np.full(self.mesh.size, asked, np.int32), split(self.mesh)))
        )
        return len(self.cast) > VOTES_BEHIND and int(self.cast.popleft()) > 0
