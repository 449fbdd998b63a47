"""Datasets that stay on the devices as a whole."""

import concurrent.futures

import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array

from flaxres.data.decode import Transform
from flaxres.data.jobs import ROWS_PER_JOB, Job, fill
from flaxres.data.source import Source
from flaxres.errors import InputError

RESIDENT_LIMIT = 8 << 30


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
    source: Source, transform: Transform, sharding: Sharding, threads: int
) -> dict[str, Array]:
    """Loads a whole split onto every device.

    An image that can't be decoded is an error here in any case, since a dataset of this size is
    quickly prepared again.

    Args:
      source: the split.
      transform: decodes and crops the images.
      sharding: a sharding that replicates arrays.
      threads: number of threads that decode.

    Returns:
      `image` (n, size, size, 3) uint8 and `label` as in a batch, (n,) int32 or (n, K) uint8.

    Raises:
      InputError: the images have more than 8 GiB, or a record can't be read or decoded.
    """
    require_resident(source, transform.size)
    count, size = len(source), transform.size
    images, labels = np.empty((count, size, size, 3), np.uint8), np.empty(count, np.int32)

    def load(first: int) -> None:
        records = np.arange(first, min(first + ROWS_PER_JOB, count))
        job = Job(transform, records, transform.numbers(records), "error", False)
        part = slice(first, first + ROWS_PER_JOB)
        labels[part] = fill(source, job, images[part]).labels

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for task in [pool.submit(load, first) for first in range(0, count, ROWS_PER_JOB)]:
            task.result()
    # Not `device_put`, which would compare the whole dataset between the processes of a run.
    return {
        name: jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
        for name, array in (("image", images), ("label", source.targets(labels)))
    }
