"""Prepared datasets, read as bytes: any ArrayRecord dataset that TFDS can find, TensorFlow not needed."""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from flaxres.data import builders, digests, integrity, prepare
from flaxres.data.choices import BadImages
from flaxres.errors import InputError, unknown


@dataclasses.dataclass(frozen=True)
class Source:
    """One split: random access to encoded images and their labels; can be pickled, for worker processes.

    Attributes:
      name: dataset and split, for messages.
      dataset: TFDS's full name, `name[/config]:version`.
      classes: names in label order.
      digest: SHA-256 over the dataset's name, version, classes, its splits' numbers of examples and bytes, and where flaxres wrote it, all examples.
      files: the files of the split in their order, with the number of records that are read from each.
    """

    name: str
    dataset: str
    classes: tuple[str, ...]
    digest: str
    records: Sequence[Any]
    image_key: str
    label_key: str
    files: tuple[tuple[str, int], ...]

    @property
    def class_digest(self) -> str:
        """SHA-256 over the names of the classes, in their order."""
        return digests.of_words(self.classes)

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> tuple[bytes, int]:
        """Encoded image and label of record `index`; raises InputError where the record is damaged."""
        try:
            record = self.records[index]
            return record[self.image_key], int(record[self.label_key])
        except Exception as error:  # array_record and the protobuf parser raise many kinds
            reason = " ".join(str(error).split())
            raise InputError(
                f"{self.name} record {index} can't be read from {self.file(index)!r} ({reason}): that file is damaged, prepare the dataset again"
            ) from error

    def file(self, index: int) -> str:
        """The file that holds record `index`."""
        for path, count in self.files:
            if index < count:
                return path
            index -= count
        return "no file"

    def file_name(self, index: int) -> str:
        """What the image of record `index` was called before it was prepared, as far as the dataset says."""
        name = self.records[index].get("file_name", b"")
        return name.decode(errors="replace") if isinstance(name, bytes) else str(name)

    def describe(self, index: int) -> str:
        """Record `index` in words, for messages."""
        name = self.file_name(index)
        return f"{self.name} record {index}{f' ({name})' if name else ''}"


def find(
    name: str,
    source: str | None,
    data_dir: str | None,
    splits: Sequence[str] = (),
    bad_images: BadImages = "skip",
) -> Any:
    """The TFDS builder of a prepared dataset; one of ours is prepared now if it isn't yet, unless a split is asked for that it won't have."""
    if name == "folder":
        builders.require_folder(source)
    config = prepare.config_name(name, source)
    ours = f"{name}:{prepare.VERSION}" if config is None else f"{name}/{config}"
    for wanted in (
        (ours, name)
        if name in builders.BUILDERS and config is None
        else (ours,)
        if config
        else (name,)
    ):
        with contextlib.suppress(InputError):
            return locate(wanted, data_dir)
    if name not in builders.BUILDERS:
        raise unknown("dataset", name, [*builders.BUILDERS, *prepared(data_dir)])
    place, tally = prepare.prepare(name, source, data_dir, splits, bad_images)
    for line in tally.lines():
        print(line, file=sys.stderr)
    return open_folder(place)


def locate(name: str, data_dir: str | None) -> Any:
    from tensorflow_datasets.core import read_only_builder, registered

    try:
        return read_only_builder.builder_from_files(name, data_dir=data_dir)
    except (registered.DatasetNotFoundError, ValueError) as error:
        raise InputError(
            f"no prepared dataset {name!r} in {data_dir or 'the TFDS folder'}"
        ) from error


def open_folder(path: pathlib.Path) -> Any:
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(path)


def prepared(data_dir: str | None) -> list[str]:
    """Names of the datasets under `data_dir`."""
    import tensorflow_datasets as tfds

    root = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    return sorted(
        {
            "/".join(path.relative_to(root).parts[:-2])
            for path in root.glob("*/**/dataset_info.json")
        }
    )


def open_splits(
    name: str,
    splits: Sequence[str] = (),
    source: str | None = None,
    data_dir: str | None = None,
    bad_images: BadImages = "skip",
) -> list[Source]:
    """Splits (TFDS's slicing works: `train[:90%]`) of the dataset `name`; without `splits` all of them.

    Raises InputError for a dataset, split or feature that isn't there, one that isn't in ArrayRecord, or one of whose files a part is missing.
    """
    builder = find(
        name, source, data_dir, [split.partition("[")[0] for split in splits], bad_images
    )
    folder = pathlib.Path(builder.data_path)
    integrity.require_whole(folder, integrity.read(folder)["files"])
    return sources(builder, name, splits)


def sources(builder: Any, name: str, splits: Sequence[str] = ()) -> list[Source]:
    """Splits of a prepared dataset, whatever state its files are in; without `splits` all of them."""
    import tensorflow_datasets as tfds

    info, folder = builder.info, pathlib.Path(builder.data_path)
    known = integrity.read(folder)
    label_key, image_key = (
        feature(info, tfds.features.ClassLabel),
        feature(info, tfds.features.Image),
    )
    classes = tuple(info.features[label_key].names)
    sizes = (
        f"{key}={value.num_examples},{value.num_bytes}"
        for key, value in sorted(info.splits.items())
    )
    digest = digests.of_words(
        [
            name,
            str(info.version),
            *classes,
            *sizes,
            *(f"{split}={value}" for split, value in sorted(known["contents"].items())),
        ]
    )

    def opened(split: str) -> Source:
        prepare.require_split(name, split, info.splits)
        try:
            records = builder.as_data_source(
                split, decoders={image_key: tfds.decode.SkipDecoding()}
            )
        except NotImplementedError as error:
            raise InputError(
                f"dataset {name!r} at {str(folder)!r} is not in ArrayRecord: prepare it again with file_format='array_record'"
            ) from error
        except ValueError as error:
            raise InputError(
                f"split {split!r} of {name}: {' '.join(str(error).split())}"
            ) from error
        if not len(records):
            raise InputError(f"split {split!r} of {name} is empty: choose another")
        files = tuple(
            (str(part.filename), part.take) for part in info.splits[split].file_instructions
        )
        return Source(
            f"{name}/{split}",
            info.full_name.replace("/" + str(info.version), ""),
            classes,
            digest,
            records,
            image_key,
            label_key,
            files,
        )

    return [opened(split) for split in splits or info.splits]


def open_source(
    name: str, split: str, source: str | None = None, data_dir: str | None = None
) -> Source:
    """One split; see `open_splits`."""
    return open_splits(name, [split], source, data_dir)[0]


def feature(info: Any, kind: type) -> str:
    """The key of the only feature of a kind."""
    keys = [key for key, value in info.features.items() if isinstance(value, kind)]
    if len(keys) != 1:
        raise InputError(
            f"dataset {info.full_name} has {len(keys)} features of kind {kind.__name__}: the rule is one"
        )
    return keys[0]


def verify(
    name: str, source: str | None = None, data_dir: str | None = None, decode: bool = False
) -> integrity.Verdict:
    """Checks all splits of a prepared dataset; see `integrity.verify`. A file that is cut or gone is a problem found, not an error."""
    builder = find(name, source, data_dir)
    folder = pathlib.Path(builder.data_path)
    return integrity.verify(folder, sources(builder, name), decode)


def describe(name: str, source: str | None = None, data_dir: str | None = None) -> dict[str, Any]:
    """Facts of a prepared dataset: its place and version, its splits with their examples, bytes and digests, and its classes."""
    import tensorflow_datasets as tfds

    builder = find(name, source, data_dir)
    info, folder = builder.info, pathlib.Path(builder.data_path)
    contents = integrity.read(folder)["contents"]
    splits = {
        split: {
            "examples": facts.num_examples,
            "bytes": facts.num_bytes,
            "shards": facts.num_shards,
            "sha256": contents.get(split),
        }
        for split, facts in info.splits.items()
    }
    classes = list(info.features[feature(info, tfds.features.ClassLabel)].names)
    return {"path": str(folder), "version": str(info.version), "splits": splits, "classes": classes}
