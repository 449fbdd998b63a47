"""Datasets by name, read in place or prepared on first use.

The trainer and the commands open their data here. `flaxres.data.stores` opens the datasets that are
read in place, `flaxres.data.sources` only opens prepared ones, and `flaxres.data.prepare` only
prepares them.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

from flaxres.data import integrity, sources
from flaxres.data.choices import CACHE_MIB, BadImages
from flaxres.data.prepare import prepare, require_complete
from flaxres.data.source import Source
from flaxres.data.sources import NotPreparedError, open_splits, require_prepared
from flaxres.data.stores import open_store
from flaxres.printing import say


def open_or_prepare(
    name: str,
    splits: Sequence[str] = (),
    source: str | None = None,
    data_dir: str | None = None,
    bad_images: BadImages = "skip",
    validation: float = 0.0,
    copy: bool = True,
    cache_mib: int = CACHE_MIB,
    multi_label: bool = False,
) -> list[Source]:
    """Opens splits of a dataset, and prepares it before if flaxres can and it is not there.

    Args:
      name: name of the dataset: `digits`, `folder`, `parquet`, `webdataset`, `cifar10`,
        `imagenet2012`, or any dataset that TFDS has prepared in ArrayRecord.
      splits: names of the splits, with slices as in TFDS: `train[:90%]`. Empty opens all splits.
      source: path of the original files; see `flaxres.data.builders`.
      data_dir: folder of prepared datasets; None is the folder of TFDS.
      bad_images: treatment of images that can't be decoded; see `flaxres.data.prepare.prepare`.
      validation: share of each class of a folder's split `train` that becomes the split `val`.
      copy: prepare a folder instead of reading it in place.
      cache_mib: maximum MiB of Parquet row groups to keep in memory.
      multi_label: images have any number of labels; see `flaxres.data.choices.MULTI_LABEL`.

    Returns:
      A source for each split.

    Raises:
      InputError: the dataset can neither be opened nor prepared, or lacks a split; or, with
        `bad_images="error"`, an image can't be decoded. A split that a dataset would not have is
        refused before the dataset is prepared.

    Examples:
      >>> import tempfile
      >>> folder = tempfile.TemporaryDirectory()
      >>> train, test = open_or_prepare("digits", ["train", "test"], data_dir=folder.name)
      >>> len(train), len(test), train.classes[:3]
      (1297, 500, ('0', '1', '2'))
      >>> folder.cleanup()
    """
    if store := open_store(name, source, data_dir, validation, copy, cache_mib, multi_label):
        return store.sources(splits)
    with contextlib.suppress(NotPreparedError):
        opened = open_splits(name, splits, source, data_dir, validation)
        if bad_images == "error":
            report = sources.describe(name, source, data_dir, validation)["report"]
            require_complete(name, report)
        return opened
    _prepare(name, splits, source, data_dir, bad_images, validation)
    return open_splits(name, splits, source, data_dir, validation)


def describe(
    name: str,
    source: str | None = None,
    data_dir: str | None = None,
    validation: float = 0.0,
    copy: bool = True,
    multi_label: bool = False,
) -> dict[str, Any]:
    """Describes a dataset, and prepares it before like `open_or_prepare`.

    Args:
      name, source, data_dir, validation, copy, multi_label: the dataset; see `open_or_prepare`.

    Returns:
      See `flaxres.data.sources.describe`, and `Store.describe` for a dataset that is read in place.

    Raises:
      InputError: the dataset can neither be opened nor prepared.
    """
    if store := open_store(name, source, data_dir, validation, copy, multi_label=multi_label):
        return store.describe()
    ensure_prepared(name, source, data_dir, validation)
    return sources.describe(name, source, data_dir, validation)


def verify(
    name: str,
    source: str | None = None,
    data_dir: str | None = None,
    decode: bool = False,
    validation: float = 0.0,
    copy: bool = True,
    multi_label: bool = False,
) -> tuple[integrity.Verdict, str]:
    """Checks all splits of a dataset, and prepares it before like `open_or_prepare`.

    Args:
      name, source, data_dir, validation, copy, multi_label: the dataset; see `open_or_prepare`.
      decode: decode every image too.

    Returns:
      The verdict, and how to repair the dataset.

    Raises:
      InputError: the dataset can neither be opened nor prepared.
    """
    if store := open_store(name, source, data_dir, validation, copy, multi_label=multi_label):
        return integrity.verify(store.path, store.sources(), decode), store.remedy
    ensure_prepared(name, source, data_dir, validation)
    verdict = sources.verify(name, source, data_dir, decode, validation)
    return verdict, "delete the dataset's folder and prepare it again"


def ensure_prepared(
    name: str,
    source: str | None = None,
    data_dir: str | None = None,
    validation: float = 0.0,
) -> None:
    """Prepares a dataset if flaxres can and it is not there; see `open_or_prepare`.

    Raises:
      InputError: the dataset is neither there nor can be prepared.
    """
    with contextlib.suppress(NotPreparedError):
        return require_prepared(name, source, data_dir, validation)
    return _prepare(name, (), source, data_dir, "skip", validation)


def _prepare(
    name: str,
    splits: Sequence[str],
    source: str | None,
    data_dir: str | None,
    bad_images: BadImages,
    validation: float,
) -> None:
    """Prepares a dataset and prints the tally on stderr."""
    bases = [split.partition("[")[0] for split in splits]
    _, tally = prepare(name, source, data_dir, bases, bad_images, validation)
    for line in tally.lines():
        say(line)
