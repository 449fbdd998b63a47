"""Batches on the devices: threads or processes read and decode them ahead.

One more thread transfers batches to the devices. Positions determine the order of samples; it does
not depend on which thread is first.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Int, Shaped, UInt8

from flaxres.data._shared import SharedBlocks
from flaxres.data._workers import end_workers, explained, start_workers, too_slow, work
from flaxres.data.choices import BadImages
from flaxres.data.jobs import ROWS_PER_JOB, Job, Loaded, fill
from flaxres.data.rows import Rows
from flaxres.data.source import Source
from flaxres.printing import say


@dataclasses.dataclass(frozen=True)
class Speed:
    """Settings of a loader that do not change its batches.

    Attributes:
      threads: number of threads that decode in this process, by default one a core; used if
        `workers` is 0.
      workers: number of processes that decode, each with its interpreter, for machines with more
        cores than one interpreter can keep busy.
      prefetch: largest number of batches in decoding at a time.
      buffer_bytes: largest number of bytes of images in decoding at a time; one batch is always
        allowed.
      worker_seconds: seconds after which `workers` that have finished no batch end the iteration;
        0 waits forever.
    """

    threads: int = dataclasses.field(default_factory=lambda: len(os.sched_getaffinity(0)))
    workers: int = 0
    prefetch: int = 4
    buffer_bytes: int = 512 << 20
    worker_seconds: float = 300.0


@dataclasses.dataclass
class _Pending:
    """A batch in decoding."""

    rows: Rows
    local: Int[np.ndarray, " local"]
    images: UInt8[np.ndarray, "local size size 3"]
    tasks: list[concurrent.futures.Future[Loaded]]
    block: SharedMemory | None

    @property
    def batch(self) -> int:
        """Number of rows of the global batch."""
        return len(self.rows.records)


class Loader:
    """Iterates over batches on the devices.

    A batch is a dictionary of sharded arrays: `image` (B, size, size, 3) uint8, `label` (B,) int32,
    `position` (B,) uint32 and `weight` (B,) float32, where B is the global batch. Where images have
    any number of labels, `label` is (B, K) uint8, ones and zeros for K classes. Each process
    decodes only the rows of its devices. A loader is a context manager; leaving it ends its threads
    and processes.

    Args:
      source: the split to read.
      rows: the batches to load.
      sharding: sharding of the first axis of all arrays.
      speed: number of threads and processes, and bounds on memory.
      bad_images: `error` raises an error for an image that can't be decoded.
      say: receives a message about each record that can't be decoded, once.

    Attributes:
      stall_seconds: seconds that the consumer has waited.
      skipped: the reason for each record that could not be decoded.

    Raises:
      InputError: (while iterating) a record can't be read, or, with `bad_images="error"`, decoded.
      RuntimeError: (while iterating) a worker process died or hangs.

    Examples:
      >>> import io
      >>> from PIL import Image
      >>> from flaxres.data.decode import CentreCrop
      >>> from flaxres.data.rows import evaluation_rows
      >>> buffer = io.BytesIO()
      >>> Image.new("RGB", (8, 8)).save(buffer, "PNG")
      >>> records = [{"image": buffer.getvalue(), "label": 0} for _ in range(3)]
      >>> source = Source("toy/train", "toy:1.0.0", ("toy",), "", records, "image", "label", ())
      >>> device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
      >>> with Loader(source, evaluation_rows(3, 2, CentreCrop(8, 8)), device, Speed(1)) as loader:
      ...     [(batch["image"].shape, batch["weight"].tolist()) for batch in loader]
      [((2, 8, 8, 3), [1.0, 1.0]), ((2, 8, 8, 3), [1.0, 0.0])]
    """

    def __init__(
        self,
        source: Source,
        rows: Iterable[Rows],
        sharding: Sharding,
        speed: Speed,
        bad_images: BadImages = "error",
        say: Callable[[str], None] = say,
    ) -> None:
        self.source, self.rows, self.sharding, self.speed = source, rows, sharding, speed
        self.bad_images, self.say = bad_images, say
        self.stall_seconds = 0.0
        self.over = False
        self.skipped: dict[int, str] = {}
        self.shared = SharedBlocks()
        self.pool: concurrent.futures.Executor
        self.processes: set[BaseProcess] = set()
        if speed.workers:
            self.pool, self.processes = start_workers(speed.workers, source)
        else:
            self.pool = concurrent.futures.ThreadPoolExecutor(speed.threads, "flaxres-decode")
        self.ready: queue.Queue[Any] = queue.Queue(2)
        self.stopped = threading.Event()
        self.feeder = threading.Thread(target=self._feed, name="flaxres-feed", daemon=True)
        self.feeder.start()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        end_workers(self.pool, self.processes)
        while self.feeder.is_alive():  # it may be blocked on a full queue
            _drain(self.ready)
            self.feeder.join(0.01)
        _drain(self.ready)
        self.ready.put(None)  # ends an iteration that goes on

    def __iter__(self) -> Iterator[dict[str, Array]]:
        while not self.over:
            start = time.perf_counter()
            item = self.ready.get()
            self.stall_seconds += time.perf_counter() - start
            self.over = item is None or isinstance(item, BaseException)
            if isinstance(item, BaseException):
                raise item
            if not self.over:
                yield item

    def _feed(self) -> None:
        """Keeps some batches in decoding and hands over the oldest; runs in a thread."""
        pending: collections.deque[_Pending] = collections.deque()
        try:
            rows = iter(self.rows)
            while not self.stopped.is_set():
                while (not pending or len(pending) < self._limit(pending[0])) and (
                    batch := next(rows, None)
                ) is not None:
                    pending.append(self._submit(batch))
                if not pending:
                    break
                self.ready.put(self._finish(pending.popleft()))
            self.ready.put(None)
        except BaseException as error:
            if not self.stopped.is_set():
                self.ready.put(explained(error))
        finally:
            pending.clear()
            self.shared.free_all()

    def _limit(self, pending: _Pending) -> int:
        """Returns how many batches like `pending` may be in decoding at a time."""
        by_bytes = self.speed.buffer_bytes // max(pending.images.nbytes, 1)
        return max(1, min(self.speed.prefetch, by_bytes))

    def _submit(self, rows: Rows) -> _Pending:
        """Starts to decode a batch."""
        local, size = local_rows(self.sharding, len(rows.records)), rows.transform.size
        numbers = rows.transform.numbers(rows.positions[local])
        shape, block = (len(local), size, size, 3), None
        if self.speed.workers:
            images, block = self.shared.take(shape)
        else:
            images = np.zeros(shape, np.uint8)
        tasks = []
        for first in range(0, len(local), ROWS_PER_JOB):
            part = slice(first, first + ROWS_PER_JOB)
            records = rows.records[local[part]]
            job = Job(rows.transform, records, numbers[part], self.bad_images, rows.replace)
            if block is None:
                tasks.append(self.pool.submit(fill, self.source, job, images[part]))
            else:
                tasks.append(self.pool.submit(work, job, block.name, first))
        return _Pending(rows, local, images, tasks, block)

    def _finish(self, pending: _Pending) -> dict[str, Array]:
        """Waits until a batch is decoded and transfers it to the devices."""
        loaded = self._results(pending.tasks)
        images = pending.images
        if pending.block is not None:
            images = images.copy()
            self.shared.give_back(pending.block)
        for record, reason in itertools.chain.from_iterable(part.bad for part in loaded):
            if record not in self.skipped:
                self.skipped[record] = reason
                self.say(f"skipped {reason}")
        labels = np.asarray([label for part in loaded for label in part.labels], np.int32)
        arrays = {
            "image": images,
            "label": self.source.targets(np.maximum(labels, 0)),
            "position": pending.rows.positions[pending.local],
            "weight": (labels >= 0).astype(np.float32),
        }
        return {name: self._transfer(array, pending) for name, array in arrays.items()}

    def _results(self, tasks: list[concurrent.futures.Future[Loaded]]) -> list[Loaded]:
        """Waits for all jobs of a batch; raises RuntimeError if workers take too long."""
        limit = self.speed.worker_seconds if self.speed.workers else 0
        deadline = time.monotonic() + limit

        def remaining() -> float | None:
            return max(deadline - time.monotonic(), 0) if limit else None

        try:
            return [task.result(remaining()) for task in tasks]
        except TimeoutError as error:
            raise too_slow(limit, self.processes) from error

    def _transfer(self, array: Shaped[np.ndarray, "local ..."], pending: _Pending) -> Array:
        """Returns a global array from the rows of this process."""

        def part(index: Any) -> np.ndarray:
            first, last, _ = index[0].indices(pending.batch)
            start = np.searchsorted(pending.local, first)
            return array[start : start + last - first]

        shape = (pending.batch, *array.shape[1:])
        return jax.make_array_from_callback(shape, self.sharding, part)


def _drain(items: queue.Queue[Any]) -> None:
    """Empties a queue."""
    while True:
        try:
            items.get_nowait()
        except queue.Empty:
            return


def local_rows(sharding: Sharding, total: int) -> Int[np.ndarray, " local"]:
    """Returns the rows of a global batch that the devices of this process hold, in order.

    Args:
      sharding: sharding of the batch.
      total: number of rows of the global batch.
    """
    parts = {
        index[0].indices(total)[:2]
        for index in sharding.addressable_devices_indices_map((total,)).values()
        if index
    }
    return np.concatenate([np.arange(*part) for part in sorted(parts)])
