"""Opens the datasets that are read in place, by name."""

from flaxres.data._naming import require_divisible
from flaxres.data.choices import CACHE_MIB, FROM_ADDRESSES, IN_PLACE, MULTI_LABEL
from flaxres.data.idx import open_idx
from flaxres.data.in_place import open_folder
from flaxres.data.manifest import open_manifest
from flaxres.data.parquet import open_parquet
from flaxres.data.store import Store
from flaxres.data.tfrecord import open_tfrecord
from flaxres.data.webdataset import open_webdataset
from flaxres.errors import InputError
from flaxres.remote import is_address

INDEXED = {"webdataset": open_webdataset, "tfrecord": open_tfrecord}


def open_store(
    name: str,
    source: str | None = None,
    data_dir: str | None = None,
    validation: float = 0.0,
    copy: bool = True,
    cache_mib: int = CACHE_MIB,
    multi_label: bool = False,
) -> Store | None:
    """Opens a dataset that is read in place.

    Args:
      name: name of the dataset.
      source: the folder of its files.
      data_dir: folder of prepared datasets, beside which indexes are kept.
      validation: share of each class of a folder's split `train` that becomes the split `val`.
      copy: prepare a folder instead of reading it in place.
      cache_mib: maximum MiB of Parquet row groups to keep in memory.
      multi_label: images have any number of labels.

    Returns:
      The store; None for a dataset that is prepared.

    Raises:
      InputError: the files break the rules of the store, or a setting does not apply to it.

    Examples:
      >>> import pathlib, tempfile
      >>> from PIL import Image
      >>> with tempfile.TemporaryDirectory() as root:
      ...     for name in ("train/cat/1.png", "train/dog/1.png"):
      ...         path = pathlib.Path(root, name)
      ...         path.parent.mkdir(parents=True)
      ...         Image.new("RGB", (8, 8)).save(path)
      ...     store = open_store("folder", root, copy=False)
      ...     [(source.name, len(source), source.classes) for source in store.sources()]
      [('folder/train', 2, ('cat', 'dog'))]
    """
    if multi_label and name not in MULTI_LABEL:
        raise InputError(
            f"data.multi_label=True with data.name={name!r}: the rule is one of "
            f"{', '.join(MULTI_LABEL)}; write the labels as a list of paths and labels"
        )
    if source is not None and is_address(source):
        return _open_address(name, source, data_dir, validation, cache_mib, multi_label)
    if name not in IN_PLACE and not copy:
        raise InputError(
            f"data.copy=False with data.name={name!r}: only {', '.join(IN_PLACE)} can be read in "
            "place; set data.copy=True"
        )
    if name not in IN_PLACE or (copy and name == "folder"):
        return None
    if name == "folder":
        return open_folder(source, validation)
    require_divisible(name, validation)
    if name == "manifest":
        return open_manifest(source, multi_label)
    if name == "idx":
        return open_idx(source)
    return _open_shards(name, source, data_dir, cache_mib, multi_label)


def _open_shards(
    name: str, source: str | None, data_dir: str | None, cache_mib: int, multi_label: bool
) -> Store:
    """Opens a dataset of few large files."""
    if name == "parquet":
        return open_parquet(source, cache_mib << 20, multi_label)
    return INDEXED[name](source, data_dir)


def _open_address(
    name: str,
    source: str,
    data_dir: str | None,
    validation: float,
    cache_mib: int,
    multi_label: bool,
) -> Store:
    """Opens a dataset in an object store.

    Raises:
      InputError: the dataset is of another kind, or the store refuses or can't be reached.
    """
    if name not in FROM_ADDRESSES:
        raise InputError(
            f"data.source={source!r} with data.name={name!r}: the rule is one of "
            f"{', '.join(FROM_ADDRESSES)} for an address; copy the files to a disk, or write them "
            "in one of these forms"
        )
    require_divisible(name, validation)
    try:
        return _open_shards(name, source, data_dir, cache_mib, multi_label)
    except InputError:
        raise
    except Exception as error:  # of many types, by store
        reason = " ".join(str(error).split())
        raise InputError(
            f"data.source={source!r} can't be read ({reason}): check the bucket, the network and "
            "your credentials"
        ) from error
