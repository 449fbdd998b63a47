"""Batches on the device: threads decode ahead, one more thread transfers. The order is decided by positions, never by who was first."""

import collections
import concurrent.futures
import dataclasses
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from flaxres.data.order import sample_ids
from flaxres.data.sources import Source
from flaxres.errors import InputError

Transform = Callable[[bytes, int], np.ndarray]
ROWS_A_TASK = 8
RESIDENT_LIMIT = 8 << 30


@dataclasses.dataclass(frozen=True)
class Rows:
    """One global batch to load: the position and the record of each row; a record of -1 is padding, with weight 0."""

    positions: np.ndarray
    records: np.ndarray


def training_rows(size: int, batch: int, seed: int, start: int, stop: int) -> Iterator[Rows]:
    """The batches of steps [start, stop): an endless stream of epochs, each a new permutation, that is cut wherever a batch ends."""
    for step in range(start, stop):
        positions = np.arange(step * batch, (step + 1) * batch, dtype=np.uint32)
        yield Rows(positions, sample_ids(positions, size, seed).astype(np.int64))


def evaluation_rows(size: int, batch: int) -> Iterator[Rows]:
    """Every record once, in order, the last batch padded."""
    for start in range(0, size, batch):
        positions = np.arange(start, start + batch, dtype=np.uint32)
        yield Rows(positions, np.where(positions < size, positions.astype(np.int64), -1))


class Loader:
    """Iterates over dictionaries of sharded arrays: `image` (B, size, size, 3) uint8, `label` (B,) int32, `position` (B,) uint32
    and `weight` (B,) float32, B being the global batch; each process decodes only the rows of its own devices.

    `stall_seconds` is how long the consumer has waited. An image or record that can't be read is raised to the consumer as InputError.
    Use it as a context manager: leaving it stops the threads.
    """

    def __init__(
        self, source: Source, rows: Iterable[Rows], transform: Transform, size: int, sharding: Sharding, threads: int, prefetch: int
    ) -> None:
        self.source, self.rows, self.transform, self.size, self.sharding = source, rows, transform, size, sharding
        self.stall_seconds = 0.0
        self.pool = concurrent.futures.ThreadPoolExecutor(threads, "flaxres-decode")
        self.prefetch = prefetch
        self.ready: queue.Queue[Any] = queue.Queue(2)
        self.stopped = threading.Event()
        self.feeder = threading.Thread(target=self.feed, name="flaxres-feed", daemon=True)
        self.feeder.start()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.pool.shutdown(wait=False, cancel_futures=True)
        while self.feeder.is_alive():  # it may be blocked on a full queue
            drain(self.ready)
            self.feeder.join(0.01)

    def __iter__(self) -> Iterator[dict[str, jax.Array]]:
        while True:
            start = time.perf_counter()
            item = self.ready.get()
            self.stall_seconds += time.perf_counter() - start
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def feed(self) -> None:
        """Runs in its own thread: keeps `prefetch` batches in decoding and hands over the oldest, transferred."""
        under_way: collections.deque[tuple[dict[str, np.ndarray], int, list[concurrent.futures.Future[None]]]] = collections.deque()
        try:
            rows = iter(self.rows)
            for batch in itertools.islice(rows, self.prefetch):
                under_way.append(self.submit(batch))
            while under_way and not self.stopped.is_set():
                arrays, total, tasks = under_way.popleft()
                for task in tasks:
                    task.result()
                under_way.extend(self.submit(batch) for batch in itertools.islice(rows, 1))
                self.ready.put(self.transfer(arrays, total))
            self.ready.put(None)
        except BaseException as error:
            if not self.stopped.is_set():
                self.ready.put(error)

    def submit(self, batch: Rows) -> tuple[dict[str, np.ndarray], int, list[concurrent.futures.Future[None]]]:
        local = local_rows(self.sharding, len(batch.records))
        count = len(local)
        arrays = {
            "image": np.zeros((count, self.size, self.size, 3), np.uint8),
            "label": np.zeros(count, np.int32),
            "position": batch.positions[local],
            "weight": (batch.records[local] >= 0).astype(np.float32),
        }
        records = batch.records[local]
        tasks = [
            self.pool.submit(self.fill, arrays, records, range(first, min(first + ROWS_A_TASK, count))) for first in range(0, count, ROWS_A_TASK)
        ]
        return arrays, len(batch.records), tasks

    def fill(self, arrays: dict[str, np.ndarray], records: np.ndarray, rows: range) -> None:
        for row in rows:
            if records[row] < 0:
                continue
            position = int(arrays["position"][row])
            arrays["image"][row], arrays["label"][row] = load(self.source, int(records[row]), self.transform, position)

    def transfer(self, arrays: dict[str, np.ndarray], total: int) -> dict[str, jax.Array]:
        offset = {int(row): i for i, row in enumerate(local_rows(self.sharding, total))}

        def shard(array: np.ndarray) -> jax.Array:
            def part(index: Any) -> np.ndarray:
                first, last, _ = index[0].indices(total)
                return array[offset[first] : offset[first] + last - first]

            return jax.make_array_from_callback((total, *array.shape[1:]), self.sharding, part)

        return {name: shard(array) for name, array in arrays.items()}


def load(source: Source, record: int, transform: Transform, position: int) -> tuple[np.ndarray, int]:
    """The picture and the label of a record; raises InputError that names the record where either can't be had."""
    data, label = source.read(record)
    try:
        return transform(data, position), label
    except InputError as error:
        raise InputError(f"{source.name} record {record}: {error}; prepare the dataset again") from error


def drain(items: queue.Queue[Any]) -> None:
    while True:
        try:
            items.get_nowait()
        except queue.Empty:
            return


def local_rows(sharding: Sharding, total: int) -> np.ndarray:
    """The rows of a global batch that this process's devices hold, ascending."""
    parts = {index[0].indices(total)[:2] for index in sharding.addressable_devices_indices_map((total,)).values() if index}
    return np.concatenate([np.arange(*part) for part in sorted(parts)])


def require_resident(source: Source, size: int) -> None:
    """Refuses a dataset that is too large to lie on a device."""
    if (need := len(source) * size * size * 3) > RESIDENT_LIMIT:
        raise InputError(f"data.resident=True would put {need / 2**30:.0f} GiB on each device: the limit is 8; set data.resident=False")


def resident(source: Source, transform: Transform, size: int, sharding: Sharding, threads: int) -> dict[str, jax.Array]:
    """The whole split on every device: `image` (N, size, size, 3) uint8 and `label` (N,) int32; raises InputError above 8 GiB."""
    require_resident(source, size)
    count = len(source)
    images, labels = np.empty((count, size, size, 3), np.uint8), np.empty(count, np.int32)

    def fill(record: int) -> None:
        images[record], labels[record] = load(source, record, transform, record)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for task in [pool.submit(fill, record) for record in range(count)]:
            task.result()
    return {"image": jax.device_put(images, sharding), "label": jax.device_put(labels, sharding)}
