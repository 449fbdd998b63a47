"""Worker processes that decode images into shared memory."""

import concurrent.futures
import concurrent.futures.process
import multiprocessing
import os
import pathlib
import shutil
import signal
import threading
import time
from collections.abc import Iterable
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from flaxres import _command
from flaxres.data.jobs import Job, Loaded, fill
from flaxres.data.source import Source

# With fewer cores, threads in one interpreter are about as fast, and start at once.
MANY_CORES = 8
# Left to the training loop and XLA.
OTHER_CORES = 2
# What an interpreter with a decoder takes, beside its cache.
WORKER_BYTES = 256 << 20

# The state of a worker process.
worker_source: Source
worker_blocks: dict[str, SharedMemory] = {}


def start_workers(count: int, source: Source) -> concurrent.futures.ProcessPoolExecutor:
    """Starts processes that read `source`.

    They are spawned, since a fork of a process with JAX's threads may hang.
    """
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(count, context, begin_work, (source, os.getpid()))
    for _ in range(count):
        pool.submit(os.getpid)
    return pool


def default_workers(shared: int, cache: int) -> tuple[int, str]:
    """Returns how many processes decode where `data.workers` is None, and what prevents more.

    On many cores the threads of one interpreter are in each other's way, and in the training
    loop's: 16 threads decode 2,189 photographs a second on a machine where 14 processes decode as
    fast as their number (benchmarks/RESULTS.md).

    Args:
      shared: bytes of shared memory that the batches in decoding take.
      cache: largest cache of each process in bytes.

    Returns:
      The number, 0 for threads, and '' or the reason for 0 where there are many cores.
    """
    cores = len(os.sched_getaffinity(0))
    if cores < MANY_CORES:
        return 0, ""
    if not _command.running:
        return 0, (
            f"{cores} threads decode in the interpreter of the training loop; data.workers="
            f"{cores - OTHER_CORES} is faster, in a script with `if __name__ == '__main__':`"
        )
    free = shutil.disk_usage("/dev/shm").free
    if free < shared:
        return 0, (
            f"/dev/shm has {free >> 20:,} MiB free, and decoding processes would take "
            f"{shared >> 20:,}: {cores} threads decode, which is slower; make it larger (docker "
            "run --shm-size), or lower data.prefetch"
        )
    fitting = _available_memory() // 4 // (WORKER_BYTES + cache)
    if fitting < 2:
        return 0, (
            f"{fitting * 4} decoding processes would fit into the memory that is free: {cores} "
            "threads decode, which is slower; lower data.cache_mib"
        )
    return min(cores - OTHER_CORES, fitting), ""


def _available_memory() -> int:
    """Returns the bytes of memory that Linux calls available."""
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


def begin_work(source: Source, parent: int) -> None:
    """Initialises a worker process.

    Signals are for the parent, which saves and then ends the workers. If the parent dies, so do
    they.
    """
    global worker_source
    worker_source = source
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def work(job: Job, block: str, first: int) -> Loaded:
    """Runs `fill` in a worker process.

    Args:
      job: the rows to decode.
      block: name of the block of shared memory that holds the batch.
      first: number of the job's first row in the block.
    """
    if block not in worker_blocks:
        _close_freed_blocks()
        worker_blocks[block] = SharedMemory(block)
    size = job.transform.size
    shape, offset = (len(job.records), size, size, 3), first * size * size * 3
    images = np.ndarray(shape, np.uint8, buffer=worker_blocks[block].buf, offset=offset)
    images[:] = 0
    return fill(worker_source, job, images)


def _close_freed_blocks() -> None:
    """Closes blocks that the parent has freed."""
    for name in [*worker_blocks]:
        if not os.path.exists(f"/dev/shm/{name}"):  # noqa: PTH110
            worker_blocks.pop(name).close()


def stopped_or_hanging(pids: Iterable[int | None]) -> str:
    """Describes the worker processes that finish no batch: the one that is stopped, or all."""
    states = {pid: _state(pid) for pid in pids}
    stopped = [pid for pid, state in states.items() if state in ("T", "t")]
    if stopped:
        return f"process {stopped[0]} is stopped"
    return f"one of the processes {', '.join(sorted(map(str, states)))} hangs"


def _state(pid: int | None) -> str:
    """Returns Linux's letter for the state of a process; '?' if it does not exist.

    R is running, S sleeping, D waiting for a disk, T stopped.
    """
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "?"


def explained(error: BaseException) -> BaseException:
    """Returns an error that explains the death of a worker, and any other error as it is."""
    if not isinstance(error, concurrent.futures.process.BrokenProcessPool):
        return error
    replacement = RuntimeError(
        "a loading process (data.workers) died: killed from outside, out of memory, or, in a "
        "script of your own, started without `if __name__ == '__main__':`; correct that and start "
        "again to continue"
    )
    replacement.__cause__ = error
    return replacement
