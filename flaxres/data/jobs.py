"""Reading and decoding of some rows of a batch, in a thread or a process."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int64, UInt8

from flaxres.data.choices import BadImages
from flaxres.data.decode import Transform
from flaxres.data.labels import require_label
from flaxres.data.source import Source
from flaxres.errors import InputError
from flaxres.serving.crop import UnreadableError

ROWS_PER_JOB = 8
# So many images in a row that can't be decoded are no coincidence.
BAD_LIMIT = 100


@dataclasses.dataclass(frozen=True)
class Job:
    """Some rows of a batch.

    Attributes:
      transform: decodes and crops the images.
      records: record number of each row; -1 is padding.
      numbers: random numbers of each row for the transform.
      bad_images: `error` raises an error for an image that can't be decoded.
      replace: see `flaxres.data.rows.Rows`.
    """

    transform: Transform
    records: Int64[np.ndarray, " rows"]
    numbers: Float[np.ndarray, "rows ..."]
    bad_images: BadImages
    replace: bool


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The result of a job.

    Attributes:
      labels: label of each row; -1 for padding.
      bad: record number and reason of each image that can't be decoded.
    """

    labels: list[int]
    bad: list[tuple[int, str]]


def fill(source: Source, job: Job, images: UInt8[np.ndarray, "rows size size 3"]) -> Loaded:
    """Decodes the rows of a job.

    Args:
      source: the split to read.
      job: the rows.
      images: receives the images; padding keeps its values.

    Returns:
      Labels, and images that can't be decoded.

    Raises:
      InputError: a record can't be read, or too many images in a row can't be decoded; with
        `bad_images="error"` one is too many. The message names the record and its file.
    """
    loaded = Loaded([], [])
    for row, record in enumerate(job.records.tolist()):
        label = -1 if record < 0 else _fill_row(source, job, row, record, images[row], loaded)
        loaded.labels.append(label)
    return loaded


def _fill_row(
    source: Source,
    job: Job,
    row: int,
    record: int,
    image: UInt8[np.ndarray, "size size 3"],
    loaded: Loaded,
) -> int:
    """Decodes one row into `image` and returns its label; -1 if it becomes padding."""
    for attempt in range(BAD_LIMIT):
        candidate = (record + attempt) % len(source)
        try:
            image[...], label = _load(source, candidate, job.transform, job.numbers[row])
        except InputError as error:
            if job.bad_images == "error" or not isinstance(error.__cause__, UnreadableError):
                raise
            loaded.bad.append((candidate, str(error)))
            image[...] = 0
            if not job.replace:
                return -1
        else:
            return label
    raise InputError(
        f"{source.name}: {BAD_LIMIT} images after record {record} can't be decoded; {source.remedy}"
    )


def _load(
    source: Source, record: int, transform: Transform, numbers: Float[np.ndarray, "..."]
) -> tuple[UInt8[np.ndarray, "size size 3"], int]:
    """Returns the crop and the label of a record; InputError names the record and its file."""
    data, label = source.read(record)
    require_label(source, record, label)
    try:
        return transform(data, numbers), label
    except UnreadableError as error:
        raise InputError(
            f"{source.describe(record)}: {error}; {source.remedy}, or set data.bad_images='skip'"
        ) from error
