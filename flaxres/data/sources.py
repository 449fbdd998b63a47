"""Opens prepared datasets: any ArrayRecord dataset that TFDS can find, without TensorFlow.

Nothing here prepares a dataset; `flaxres.data.datasets` does that on first use.
"""

import contextlib
import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

from flaxres.data import digests, integrity
from flaxres.data._naming import (
    MIXED,
    MIXED_VERSION,
    config_name,
    require_divisible,
    require_split,
    version,
)
from flaxres.data.builders import BUILDERS
from flaxres.data.choices import IN_PLACE
from flaxres.data.folders import require_folder
from flaxres.data.source import Source
from flaxres.errors import InputError, unknown
from flaxres.paths import expanded


class NotPreparedError(InputError):
    """A dataset that flaxres can prepare but that is not prepared yet."""


def open_splits(
    name: str,
    splits: Sequence[str] = (),
    source: str | None = None,
    data_dir: str | None = None,
    validation: float = 0.0,
) -> list[Source]:
    """Opens splits of a prepared dataset.

    Args:
      name: name of the dataset: `digits`, `folder`, or `name[/config][:version]` as in TFDS.
      splits: names of the splits, with slices as in TFDS: `train[:90%]`. Empty opens all splits.
      source: the original folder of images if `name` is `folder`.
      data_dir: folder of prepared datasets; None is the folder of TFDS.
      validation: see `flaxres.data.folders.folder`.

    Returns:
      A source for each split.

    Raises:
      NotPreparedError: the dataset is one that flaxres prepares, and is not prepared yet.
      InputError: there is no such dataset or split; the dataset is not in ArrayRecord, does not
        have one image and one label, or misses a part of a file; or a slice of a dataset whose
        records are sorted by class.

    Examples:
      >>> import tempfile
      >>> from flaxres.data.prepare import prepare
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = prepare("digits", None, folder)
      ...     [source.name for source in open_splits("digits", ["test[:100]"], data_dir=folder)]
      ['digits/test[:100]']
    """
    builder = _find(name, source, data_dir, validation)
    folder = pathlib.Path(builder.data_path)
    integrity.require_whole(folder, integrity.read(folder)["files"])
    return _sources(builder, name, splits)


def open_source(
    name: str, split: str, source: str | None = None, data_dir: str | None = None
) -> Source:
    """Opens one split of a prepared dataset; see `open_splits`."""
    return open_splits(name, [split], source, data_dir)[0]


def require_prepared(
    name: str,
    source: str | None = None,
    data_dir: str | None = None,
    validation: float = 0.0,
) -> None:
    """Refuses a dataset that is not prepared; see `open_splits` for the arguments.

    Raises:
      NotPreparedError: the dataset is one that flaxres prepares, and is not prepared yet.
      InputError: there is no such dataset.
    """
    _find(name, source, data_dir, validation)


def verify(
    name: str,
    source: str | None = None,
    data_dir: str | None = None,
    decode: bool = False,
    validation: float = 0.0,
) -> integrity.Verdict:
    """Checks all splits of a prepared dataset; see `integrity.verify`.

    Args:
      name, source, data_dir, validation: the dataset; see `open_splits`.
      decode: decode every image too.

    Returns:
      The verdict. A file that is cut or missing is a problem in it and raises no error.

    Raises:
      NotPreparedError: the dataset is one that flaxres prepares, and is not prepared yet.
      InputError: there is no such dataset.
    """
    builder = _find(name, source, data_dir, validation)
    sources = _sources(builder, name)
    return integrity.verify(pathlib.Path(builder.data_path), sources, decode)


def describe(
    name: str,
    source: str | None = None,
    data_dir: str | None = None,
    validation: float = 0.0,
) -> dict[str, Any]:
    """Describes a prepared dataset.

    Args:
      name, source, data_dir, validation: the dataset; see `open_splits`.

    Returns:
      `path`, `version`, `classes`, the `report` of the preparation (see
      `flaxres.data.prepare.Tally.report`), and for each of `splits` its number of `examples`,
      `bytes` and `shards` and the `sha256` of its examples, which is None if TFDS prepared the
      dataset.

    Raises:
      NotPreparedError: the dataset is one that flaxres prepares, and is not prepared yet.
      InputError: there is no such dataset.
    """
    import tensorflow_datasets as tfds

    builder = _find(name, source, data_dir, validation)
    info, folder = builder.info, pathlib.Path(builder.data_path)
    known = integrity.read(folder)
    contents = known["contents"]
    splits = {
        split: {
            "examples": facts.num_examples,
            "bytes": facts.num_bytes,
            "shards": facts.num_shards,
            "sha256": contents.get(split),
        }
        for split, facts in info.splits.items()
    }
    classes = list(info.features[_feature(info, tfds.features.ClassLabel)].names)
    return {
        "path": str(folder),
        "version": str(info.version),
        "splits": splits,
        "classes": classes,
        "report": known["report"],
    }


def _find(name: str, source: str | None, data_dir: str | None, validation: float = 0.0) -> Any:
    """Returns the TFDS builder of a prepared dataset."""
    require_divisible(name, validation)
    if name == "folder":
        require_folder(source)
    config = config_name(name, source, validation)
    candidates = [name]
    if config is not None:
        candidates = [f"{name}/{config}"]
    elif name in BUILDERS:
        candidates = [f"{name}:{version(name)}", name]
    for candidate in candidates:
        with contextlib.suppress(InputError):
            return _locate(candidate, data_dir)
    if name not in BUILDERS:
        raise unknown("dataset", name, {*BUILDERS, *IN_PLACE, *_prepared(data_dir)})
    command = ["flaxres", "data", "prepare", name]
    command += ["--source", source] if source else []
    command += ["--data-dir", data_dir] if data_dir else []
    command += ["--validation", f"{validation:g}"] if validation else []
    raise NotPreparedError(
        f"dataset {name!r} is not prepared in {data_dir or 'the TFDS folder'}: run "
        f"`{shlex.join(command)}`"
    )


def _locate(name: str, data_dir: str | None) -> Any:
    """Returns the TFDS builder of the dataset with exactly this name."""
    from tensorflow_datasets.core import read_only_builder, registered

    try:
        return read_only_builder.builder_from_files(name, data_dir=data_dir)
    except (registered.DatasetNotFoundError, ValueError) as error:
        raise InputError(
            f"no prepared dataset {name!r} in {data_dir or 'the TFDS folder'}"
        ) from error


def _prepared(data_dir: str | None) -> list[str]:
    """Returns the names of the datasets in `data_dir`."""
    import tensorflow_datasets as tfds

    root = expanded(data_dir or tfds.core.constants.DATA_DIR)
    files = root.glob("*/**/dataset_info.json")
    return sorted({"/".join(path.relative_to(root).parts[:-2]) for path in files})


def _sources(builder: Any, name: str, splits: Sequence[str] = ()) -> list[Source]:
    """Opens splits of a dataset, in whatever state its files are; without `splits` all of them."""
    import tensorflow_datasets as tfds

    info = builder.info
    label_key = _feature(info, tfds.features.ClassLabel)
    image_key = _feature(info, tfds.features.Image)
    dataset = info.full_name.replace("/" + str(info.version), "")
    classes = tuple(info.features[label_key].names)
    digest = _digest(builder, name, classes)

    def opened(split: str) -> Source:
        _require_mixed(builder, name, split)
        records = _records(builder, name, split, image_key)
        parts = info.splits[split].file_instructions
        files = tuple((str(part.filename), part.take) for part in parts)
        return Source(
            f"{name}/{split}", dataset, classes, digest, records, image_key, label_key, files
        )

    return [opened(split) for split in splits or info.splits]


def _require_mixed(builder: Any, name: str, split: str) -> None:
    """Refuses a slice of a dataset that an older flaxres wrote, sorted by class."""
    import tensorflow_datasets as tfds

    info, base = builder.info, name.partition("/")[0].partition(":")[0]
    written = bool(integrity.read(pathlib.Path(builder.data_path))["contents"])
    if not (written and base in MIXED and "[" in split):
        return
    if tfds.core.Version(info.version) < tfds.core.Version(MIXED_VERSION):
        raise InputError(
            f"{split!r} of {info.full_name} would lack classes, since the records of that version "
            f"are sorted by class: prepare it again with `flaxres data prepare {base} --source "
            "DIR` (and shrink it again, if it was shrunk), or use whole splits"
        )


def _digest(builder: Any, name: str, classes: Sequence[str]) -> str:
    """Returns the digest of a dataset; see `Source.digest`."""
    sizes = (
        f"{split}={facts.num_examples},{facts.num_bytes}"
        for split, facts in sorted(builder.info.splits.items())
    )
    contents = integrity.read(pathlib.Path(builder.data_path))["contents"]
    examples = (f"{split}={digest}" for split, digest in sorted(contents.items()))
    return digests.words_digest([name, str(builder.info.version), *classes, *sizes, *examples])


def _records(builder: Any, name: str, split: str, image_key: str) -> Sequence[Any]:
    """Returns random access to the records of a split, with encoded images."""
    import tensorflow_datasets as tfds

    require_split(name, split, builder.info.splits)
    decoders = {image_key: tfds.decode.SkipDecoding()}
    try:
        records: Sequence[Any] = builder.as_data_source(split, decoders=decoders)
    except NotImplementedError as error:
        raise InputError(
            f"dataset {name!r} at {str(builder.data_path)!r} is not in ArrayRecord: prepare it "
            "again with file_format='array_record'"
        ) from error
    except ValueError as error:
        raise InputError(f"split {split!r} of {name}: {' '.join(str(error).split())}") from error
    if not len(records):
        raise InputError(f"split {split!r} of {name} is empty: choose another")
    return records


def _feature(info: Any, feature: type) -> str:
    """Returns the name of the only feature of a type."""
    names: list[str] = [name for name, value in info.features.items() if isinstance(value, feature)]
    if len(names) != 1:
        raise InputError(
            f"dataset {info.full_name} has {len(names)} features of type {feature.__name__}: the "
            "rule is one"
        )
    return names[0]
