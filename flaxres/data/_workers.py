"""Worker processes that decode images into shared memory."""

import concurrent.futures
import concurrent.futures.process
import multiprocessing
import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterable
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from flaxres.data.jobs import Job, Loaded, fill
from flaxres.data.source import Source

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# The state of a worker process.
worker_source: Source
worker_blocks: dict[str, SharedMemory] = {}


def start_workers(
    count: int, source: Source
) -> tuple[concurrent.futures.ProcessPoolExecutor, set[BaseProcess]]:
    """Starts processes that read `source`, and returns them with their pool.

    They are spawned, since a fork of a process with JAX's threads may hang. Signals wait until they
    are ignored: one to all processes of a terminal or a job would end a worker that still imports.
    """
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(count, context, begin_work, (source, os.getpid()))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        for _ in range(count):
            pool.submit(os.getpid)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pool, set(multiprocessing.active_children()) - others


def end_workers(pool: concurrent.futures.Executor, workers: Iterable[BaseProcess]) -> None:
    """Ends a pool and its processes at once.

    By SIGKILL, since they ignore milder signals; they hold nothing that could be lost.
    """
    pool.shutdown(wait=False, cancel_futures=True)
    for process in workers:
        process.kill()


def begin_work(source: Source, parent: int) -> None:
    """Initialises a worker process.

    Signals are for the parent, which saves and then ends the workers. If the parent dies, so do
    they.
    """
    global worker_source
    worker_source = source
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

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


def too_slow(seconds: float, workers: Iterable[BaseProcess]) -> RuntimeError:
    """Returns the error for worker processes that have finished nothing for so long."""
    who = stopped_or_hanging(process.pid for process in workers)
    return RuntimeError(
        f"loading processes (data.workers) have finished no batch for {seconds:g} seconds "
        f"(data.worker_seconds): {who}; let it continue, or check its disk, and start again to "
        "continue"
    )


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
