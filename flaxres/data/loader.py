"""Batches on the device: threads or processes decode ahead, one more thread transfers. The order is decided by positions, never by who was first."""

import collections
import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import itertools
import multiprocessing
import multiprocessing.shared_memory
import os
import pathlib
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from flaxres.data.choices import BadImages
from flaxres.data.decode import Transform, UnreadableError
from flaxres.data.order import training_ids
from flaxres.data.sources import Source
from flaxres.errors import InputError

ROWS_A_TASK = 8
IDS_AT_ONCE = 4096
RESIDENT_LIMIT = 8 << 30
# So many unreadable images after one another are no accident.
BAD_LIMIT = 100


@dataclasses.dataclass(frozen=True)
class Rows:
    """One global batch to load: the position and the record of each row, and what makes pictures of them.

    A record of -1 is padding, with weight 0. An image that can't be decoded becomes padding too, or, with `replace`, the next record that can.
    """

    positions: np.ndarray
    records: np.ndarray
    transform: Transform
    replace: bool


def training_rows(
    size: int,
    batch: int,
    seed: int,
    start: int,
    stop: int,
    transform: Callable[[int], Transform],
    repeats: int = 1,
) -> Iterator[Rows]:
    """The batches of steps [start, stop): an endless stream of epochs, each a new permutation, that is cut wherever a batch ends.

    `transform`: what makes the pictures of a step.
    """
    block = max(IDS_AT_ONCE // batch, 1)
    for first in range(start, stop, block):
        positions = np.arange(
            first * batch, min(first + block, stop) * batch, dtype=np.uint32
        ).reshape(-1, batch)
        records = training_ids(positions, size, seed, batch, repeats).astype(np.int64)
        for i, step in enumerate(range(first, min(first + block, stop))):
            yield Rows(positions[i], records[i], transform(step), True)


def evaluation_rows(size: int, batch: int, transform: Transform) -> Iterator[Rows]:
    """Every record once, in order, the last batch padded."""
    for start in range(0, size, batch):
        positions = np.arange(start, start + batch, dtype=np.uint32)
        yield Rows(
            positions, np.where(positions < size, positions.astype(np.int64), -1), transform, False
        )


@dataclasses.dataclass(frozen=True)
class Speed:
    """How a loader works; nothing here changes what it gives.

    Attributes:
      threads: that decode in this process, by default one a core; used where `workers` is 0.
      workers: processes that decode, each with its own interpreter: for machines whose many cores one interpreter can't keep busy.
      prefetch: most batches in decoding at a time.
      buffer_bytes: most bytes of pictures in decoding at a time; one batch is always allowed.
      worker_seconds: after which `workers` that have not finished a batch end the iteration; 0: never.
    """

    threads: int = dataclasses.field(default_factory=lambda: len(os.sched_getaffinity(0)))
    workers: int = 0
    prefetch: int = 4
    buffer_bytes: int = 512 << 20
    worker_seconds: float = 300.0


def note(line: str) -> None:
    print(line, file=sys.stderr)


@dataclasses.dataclass
class Pending:
    """A batch that is being decoded."""

    rows: Rows
    local: np.ndarray
    images: np.ndarray
    tasks: list["concurrent.futures.Future[Loaded]"]
    block: "multiprocessing.shared_memory.SharedMemory | None"


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What became of some rows: their labels (-1 for padding), and of the images that can't be decoded, the record and why."""

    labels: list[int]
    bad: list[tuple[int, str]]


class Loader:
    """Iterates over dictionaries of sharded arrays: `image` (B, size, size, 3) uint8, `label` (B,) int32, `position` (B,) uint32
    and `weight` (B,) float32, B being the global batch; each process decodes only the rows of its own devices.

    `stall_seconds` is how long the consumer has waited; `skipped` maps the records that could not be decoded to the reason, and `say` is told of
    each, once. With `bad_images="error"`, and always where a record can't be read at all, the consumer gets an InputError that names it.
    Use it as a context manager: leaving it ends the threads and processes.
    """

    def __init__(
        self,
        source: Source,
        rows: Iterable[Rows],
        sharding: Sharding,
        speed: Speed,
        bad_images: BadImages = "error",
        say: Callable[[str], None] = note,
    ) -> None:
        self.source, self.rows, self.sharding, self.speed, self.bad_images, self.say = (
            source,
            rows,
            sharding,
            speed,
            bad_images,
            say,
        )
        self.stall_seconds = 0.0
        self.over = False
        self.skipped: dict[int, str] = {}
        self.blocks: list[multiprocessing.shared_memory.SharedMemory] = []
        self.unused: list[multiprocessing.shared_memory.SharedMemory] = []
        others = set(multiprocessing.active_children())
        self.pool = (
            start_workers(speed.workers, source)
            if speed.workers
            else concurrent.futures.ThreadPoolExecutor(speed.threads, "flaxres-decode")
        )
        self.processes = set(multiprocessing.active_children()) - others
        self.ready: queue.Queue[Any] = queue.Queue(2)
        self.stopped = threading.Event()
        self.feeder = threading.Thread(target=self.feed, name="flaxres-feed", daemon=True)
        self.feeder.start()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.pool.shutdown(wait=False, cancel_futures=True)
        for process in self.processes:  # by SIGKILL, since they leave the milder signals to us; they hold nothing that could be lost
            process.kill()
        while self.feeder.is_alive():  # it may be blocked on a full queue
            drain(self.ready)
            self.feeder.join(0.01)

    def __iter__(self) -> Iterator[dict[str, jax.Array]]:
        while not self.over:
            start = time.perf_counter()
            item = self.ready.get()
            self.stall_seconds += time.perf_counter() - start
            self.over = item is None or isinstance(item, BaseException)
            if isinstance(item, BaseException):
                raise item
            if not self.over:
                yield item

    def feed(self) -> None:
        """Runs in its own thread: keeps some batches in decoding and hands over the oldest, transferred."""
        under_way: collections.deque[Pending] = collections.deque()
        try:
            rows = iter(self.rows)
            while not self.stopped.is_set():
                while (not under_way or len(under_way) < self.most(under_way[0])) and (
                    batch := next(rows, None)
                ) is not None:
                    under_way.append(self.submit(batch))
                if not under_way:
                    break
                self.ready.put(self.finish(under_way.popleft()))
            self.ready.put(None)
        except BaseException as error:
            if not self.stopped.is_set():
                self.ready.put(explained(error))
        finally:
            under_way.clear()
            for block in [*self.blocks]:
                self.free(block)

    def most(self, pending: Pending) -> int:
        """How many batches may be in decoding at a time."""
        return max(
            1, min(self.speed.prefetch, self.speed.buffer_bytes // max(pending.images.nbytes, 1))
        )

    def submit(self, rows: Rows) -> Pending:
        local = local_rows(self.sharding, len(rows.records))
        size = rows.transform.size
        shape = (len(local), size, size, 3)
        numbers = rows.transform.numbers(rows.positions[local])
        images, block = (
            (np.zeros(shape, np.uint8), None) if not self.speed.workers else self.shared(shape)
        )
        tasks = []
        for first in range(0, len(local), ROWS_A_TASK):
            part = slice(first, first + ROWS_A_TASK)
            job = Job(
                rows.transform,
                rows.records[local[part]],
                numbers[part],
                self.bad_images,
                rows.replace,
            )
            tasks.append(
                self.pool.submit(fill, self.source, job, images[part])
                if block is None
                else self.pool.submit(work, job, block.name, first)
            )
        return Pending(rows, local, images, tasks, block)

    def shared(
        self, shape: tuple[int, ...]
    ) -> tuple[np.ndarray, multiprocessing.shared_memory.SharedMemory]:
        """Memory for a batch that the workers write to; those of finished batches are used again."""
        need = int(np.prod(shape))
        block = next((b for b in self.unused if b.size >= need), None)
        if block is None:
            for small in self.unused:  # pictures have grown
                self.free(small)
            self.unused.clear()
            block = share(need)
            self.blocks.append(block)
        else:
            self.unused.remove(block)
        return np.ndarray(shape, np.uint8, buffer=block.buf), block

    def free(self, block: multiprocessing.shared_memory.SharedMemory) -> None:
        self.blocks.remove(block)
        block.unlink()
        with contextlib.suppress(BufferError):  # an array still looks at it; it is freed with that
            block.close()

    def finish(self, pending: Pending) -> dict[str, jax.Array]:
        """The batch on the devices, once all its rows are decoded."""
        loaded = self.results(pending.tasks)
        images = pending.images
        if pending.block is not None:
            images = images.copy()
            self.unused.append(pending.block)
        for record, reason in itertools.chain.from_iterable(part.bad for part in loaded):
            if record not in self.skipped:
                self.skipped[record] = reason
                self.say(f"skipped {reason}")
        labels = np.asarray([label for part in loaded for label in part.labels], np.int32)
        arrays = {
            "image": images,
            "label": np.maximum(labels, 0),
            "position": pending.rows.positions[pending.local],
            "weight": (labels >= 0).astype(np.float32),
        }
        return self.transfer(arrays, pending.local, len(pending.rows.records))

    def results(self, tasks: "list[concurrent.futures.Future[Loaded]]") -> list[Loaded]:
        """Of all tasks of a batch; raises RuntimeError, naming the processes that are stopped, where they take `worker_seconds`."""
        limit = self.speed.worker_seconds if self.speed.workers else 0
        deadline = time.monotonic() + limit
        try:
            return [
                task.result(max(deadline - time.monotonic(), 0) if limit else None)
                for task in tasks
            ]
        except TimeoutError as error:
            states = {process.pid: state_of(process.pid) for process in self.processes}
            stopped = [pid for pid, state in states.items() if state in ("T", "t")]
            who = (
                f"process {stopped[0]} is stopped"
                if stopped
                else f"one of the processes {', '.join(sorted(map(str, states)))} hangs"
            )
            raise RuntimeError(
                f"loading processes (data.workers) have finished no batch for {limit:g} seconds (data.worker_seconds): {who}; let it go on, or "
                "look at its disk, and start again to go on"
            ) from error

    def transfer(
        self, arrays: dict[str, np.ndarray], local: np.ndarray, total: int
    ) -> dict[str, jax.Array]:
        """`arrays` hold the `local` rows of a batch of `total`."""

        def shard(array: np.ndarray) -> jax.Array:
            def part(index: Any) -> np.ndarray:
                first, last, _ = index[0].indices(total)
                start = np.searchsorted(local, first)
                return array[start : start + last - first]

            return jax.make_array_from_callback((total, *array.shape[1:]), self.sharding, part)

        return {name: shard(array) for name, array in arrays.items()}


@dataclasses.dataclass(frozen=True)
class Job:
    """Some rows of a batch, for one thread or process."""

    transform: Transform
    records: np.ndarray
    numbers: np.ndarray
    bad_images: BadImages
    replace: bool


def fill(source: Source, job: Job, images: np.ndarray) -> Loaded:
    """Decodes the rows of `job` into `images`; padding stays as it is."""
    loaded = Loaded([], [])
    for row, record in enumerate(job.records.tolist()):
        label = -1
        for tried in range(BAD_LIMIT if record >= 0 else 0):
            at = (record + tried) % len(source)
            try:
                images[row], label = load(source, at, job.transform, job.numbers[row])
                break
            except InputError as error:
                if job.bad_images == "error" or not isinstance(error.__cause__, UnreadableError):
                    raise
                loaded.bad.append((at, str(error)))
                images[row] = 0
                if not job.replace:
                    break
        else:
            if record >= 0:
                raise InputError(
                    f"{source.name}: {BAD_LIMIT} images after record {record} can't be decoded; prepare the dataset again"
                )
        loaded.labels.append(label)
    return loaded


def load(
    source: Source, record: int, transform: Transform, numbers: np.ndarray
) -> tuple[np.ndarray, int]:
    """The picture and the label of a record; raises InputError that names the record and its file where either can't be had."""
    data, label = source.read(record)
    try:
        return transform(data, numbers), label
    except UnreadableError as error:
        raise InputError(
            f"{source.describe(record)}: {error}; prepare the dataset again, or set data.bad_images='skip'"
        ) from error


# What a worker process knows.
worker_source: Source
worker_blocks: dict[str, multiprocessing.shared_memory.SharedMemory] = {}


def start_workers(count: int, source: Source) -> concurrent.futures.ProcessPoolExecutor:
    """Processes that read `source`; spawned, since a fork of a process with JAX's threads may hang."""
    pool = concurrent.futures.ProcessPoolExecutor(
        count, multiprocessing.get_context("spawn"), begin_work, (source, os.getpid())
    )
    for _ in range(count):
        pool.submit(os.getpid)
    return pool


def begin_work(source: Source, parent: int) -> None:
    """Runs first in a worker process. Signals are for the parent, which saves and then ends us; if it dies, so do we."""
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
    """`fill` in a worker process, into rows `first` and on of a block of shared memory."""
    if block not in worker_blocks:
        for name in [name for name in worker_blocks if not os.path.exists(f"/dev/shm/{name}")]:  # noqa: PTH110 (given back by the parent)
            worker_blocks.pop(name).close()
        worker_blocks[block] = multiprocessing.shared_memory.SharedMemory(block)
    size = job.transform.size
    shape = (len(job.records), size, size, 3)
    images = np.ndarray(
        shape, np.uint8, buffer=worker_blocks[block].buf, offset=first * size * size * 3
    )
    images[:] = 0
    return fill(worker_source, job, images)


def state_of(pid: int | None) -> str:
    """Linux's letter for what a process does: R runs, S sleeps, D waits for a disk, T is stopped; '?' where it is gone."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "?"


def share(need: int) -> multiprocessing.shared_memory.SharedMemory:
    """A new block of shared memory that is really there: without `posix_fallocate` a full /dev/shm would kill the workers later."""
    block = multiprocessing.shared_memory.SharedMemory(create=True, size=need)
    try:
        os.posix_fallocate(block._fd, 0, need)  # type: ignore[attr-defined]
    except OSError as error:
        block.close()
        block.unlink()
        raise InputError(
            f"/dev/shm has no room for {need / 2**20:.0f} MiB of shared memory ({error.strerror}): make it larger, lower data.prefetch, "
            "or set data.workers=0"
        ) from error
    return block


def explained(error: BaseException) -> BaseException:
    if isinstance(error, concurrent.futures.process.BrokenProcessPool):
        text = (
            "a loading process (data.workers) died: killed from outside, out of memory, or, in a script of your own, started without "
            "`if __name__ == '__main__':`; mend that and start again to go on"
        )
        replacement = RuntimeError(text)
        replacement.__cause__ = error
        return replacement
    return error


def drain(items: queue.Queue[Any]) -> None:
    while True:
        try:
            items.get_nowait()
        except queue.Empty:
            return


def local_rows(sharding: Sharding, total: int) -> np.ndarray:
    """The rows of a global batch that this process's devices hold, ascending."""
    parts = {
        index[0].indices(total)[:2]
        for index in sharding.addressable_devices_indices_map((total,)).values()
        if index
    }
    return np.concatenate([np.arange(*part) for part in sorted(parts)])


def require_resident(source: Source, size: int) -> None:
    """Refuses a dataset that is too large to lie on a device."""
    if (need := len(source) * size * size * 3) > RESIDENT_LIMIT:
        raise InputError(
            f"data.resident=True would put {need / 2**30:.0f} GiB on each device: the limit is 8; set data.resident=False"
        )


def resident(
    source: Source, transform: Transform, sharding: Sharding, threads: int
) -> dict[str, jax.Array]:
    """The whole split on every device: `image` (N, size, size, 3) uint8 and `label` (N,) int32; raises InputError above 8 GiB.

    An image that can't be decoded is an error here whatever the policy: a dataset of this size is quickly prepared again.
    """
    require_resident(source, transform.size)
    count = len(source)
    images, labels = (
        np.empty((count, transform.size, transform.size, 3), np.uint8),
        np.empty(count, np.int32),
    )

    def part(first: int) -> None:
        records = np.arange(first, min(first + ROWS_A_TASK, count))
        loaded = fill(
            source,
            Job(transform, records, transform.numbers(records), "error", False),
            images[first : first + ROWS_A_TASK],
        )
        labels[first : first + ROWS_A_TASK] = loaded.labels

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for task in [pool.submit(part, first) for first in range(0, count, ROWS_A_TASK)]:
            task.result()
    # Not `device_put`, which would compare the whole dataset between the processes of a run.
    return {
        name: jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
        for name, array in (("image", images), ("label", labels))
    }
