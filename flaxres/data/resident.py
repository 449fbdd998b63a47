"""Datasets that stay on the devices as a whole."""

import concurrent.futures.process
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Int32, UInt8

from flaxres.data._shared import SharedBlocks
from flaxres.data._workers import end_workers, explained, start_workers, too_slow, work
from flaxres.data.decode import Transform
from flaxres.data.jobs import ROWS_PER_JOB, Job, fill
from flaxres.data.loader import Speed
from flaxres.data.source import Source
from flaxres.errors import InputError

RESIDENT_LIMIT = 8 << 30
BLOCK_BYTES = 8 << 20


def require_resident(source: Source, size: int) -> None:
    """Refuses a dataset that is too large to keep on a device.

    Args:
      source: the split.
      size: height and width of its images in pixels.

    Raises:
      InputError: the images have more than 8 GiB.
    """
    if (need := len(source) * size * size * 3) > RESIDENT_LIMIT:
        raise InputError(
            f"data.resident=True would put {need / 2**30:.0f} GiB on each device: the limit is 8; "
            "set data.resident=False"
        )


def resident(
    source: Source, transform: Transform, sharding: Sharding, speed: Speed
) -> dict[str, Array]:
    """Loads a whole split onto every device.

    An image that can't be decoded is an error here in any case, since a dataset of this size is
    quickly prepared again.

    Args:
      source: the split.
      transform: decodes and crops the images.
      sharding: a sharding that replicates arrays.
      speed: number of threads or processes that decode.

    Returns:
      `image` (n, size, size, 3) uint8 and `label` as in a batch, (n,) int32 or (n, K) uint8.

    Raises:
      InputError: the images have more than 8 GiB, or a record can't be read or decoded.
    """
    require_resident(source, transform.size)
    count, size = len(source), transform.size
    images, labels = np.empty((count, size, size, 3), np.uint8), np.empty(count, np.int32)
    decode = _decode_in_processes if speed.workers else _decode_in_threads
    decode(source, transform, images, labels, speed)
    # Not `device_put`, which would compare the whole dataset between the processes of a run.
    return {
        name: jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
        for name, array in (("image", images), ("label", source.targets(labels)))
    }


def _jobs(transform: Transform, first: int, last: int) -> Iterator[tuple[slice, Job]]:
    """Yields the rows of each job for the records from `first` to before `last`."""
    for start in range(first, last, ROWS_PER_JOB):
        rows = slice(start, min(start + ROWS_PER_JOB, last))
        records = np.arange(rows.start, rows.stop)
        yield rows, Job(transform, records, transform.numbers(records), "error", False)


def _decode_in_threads(
    source: Source,
    transform: Transform,
    images: UInt8[np.ndarray, "n size size 3"],
    labels: Int32[np.ndarray, " n"],
    speed: Speed,
) -> None:
    """Fills `images` and `labels`."""

    def load(rows: slice, job: Job) -> None:
        labels[rows] = fill(source, job, images[rows]).labels

    with concurrent.futures.ThreadPoolExecutor(speed.threads) as pool:
        for task in [pool.submit(load, *job) for job in _jobs(transform, 0, len(source))]:
            task.result()


def _decode_in_processes(
    source: Source,
    transform: Transform,
    images: UInt8[np.ndarray, "n size size 3"],
    labels: Int32[np.ndarray, " n"],
    speed: Speed,
) -> None:
    """Fills `images` and `labels`, one block of shared memory after another."""
    rows = max(BLOCK_BYTES // images[0].nbytes // ROWS_PER_JOB, 1) * ROWS_PER_JOB
    blocks, (pool, workers) = SharedBlocks(), start_workers(speed.workers, source)
    try:
        for first in range(0, len(source), rows):
            last = min(first + rows, len(source))
            shared, block = blocks.take(images[first:last].shape)
            tasks = [
                (part, pool.submit(work, job, block.name, part.start - first))
                for part, job in _jobs(transform, first, last)
            ]
            for part, task in tasks:
                labels[part] = task.result(speed.worker_seconds or None).labels
            images[first:last] = shared
            blocks.give_back(block)
    except TimeoutError as error:
        raise too_slow(speed.worker_seconds, workers) from error
    except concurrent.futures.process.BrokenProcessPool as error:
        raise explained(error) from error
    finally:
        end_workers(pool, workers)
        blocks.free_all()
