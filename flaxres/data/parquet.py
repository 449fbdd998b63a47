"""Parquet files of the Hugging Face hub, read in place: `data.name='parquet'`.

An image column of `datasets` is a struct of `bytes` and `path`, a class label an integer. Which
columns these are, and the names of the classes, is in the metadata `huggingface` of each file's
schema. The records are in the order of the files, which is that of their names. With
`data.multi_label`, the labels are a list of class labels.

The digest covers the names and sizes of the files and their footers, which hold the place, size and
statistics of every column. It does not depend on the times of the files, so a second download is
the same dataset.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import mmap
import pathlib
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from flaxres.data import digests
from flaxres.data._shards import find_shards
from flaxres.data.labels import numbered_sets
from flaxres.data.store import Split, Store
from flaxres.errors import InputError
from flaxres.remote import file_system, is_address, is_refusal, refusals

REMEDY = "download or write its files again"
# The type of a column with any number of labels, in words.
LABELS = "List(ClassLabel)"


@dataclasses.dataclass(frozen=True)
class Images:
    """The images of a row group.

    Their bytes are copied into memory of their own, which goes back to the system at once when it
    is dropped. Pyarrow's buffers are larger than what they hold, and its pool and malloc's heap
    keep what was freed: with a budget of 1,024 MiB a process grew to 1,900, and now to 1,600.

    Attributes:
      data: the encoded images, one after another.
      ends: where each ends in `data`; the first entry is 0.
      names: the name of each, or None.
    """

    data: mmap.mmap
    ends: Int64[np.ndarray, " n+1"]
    names: Sequence[str | None]

    @classmethod
    def of(cls, column: Any) -> "Images":
        """Copies a column of structs with `bytes` and perhaps `path`, a `pyarrow.ChunkedArray`."""
        import pyarrow as pa

        structs = column.combine_chunks()
        fields = dict(zip((field.name for field in structs.type), structs.flatten(), strict=True))
        # An image without bytes can't be decoded, like an empty file.
        images = fields["bytes"].fill_null(b"").cast(pa.large_binary())
        _, offsets, data = images.buffers()
        ends = np.frombuffer(offsets, np.int64)[images.offset : images.offset + len(images) + 1]
        first, last = int(ends[0]), int(ends[-1])
        names = fields["path"].to_pylist() if "path" in fields else [None] * len(images)
        copied = mmap.mmap(-1, max(last - first, 1))
        if last > first:
            copied[: last - first] = memoryview(data)[first:last]
        return cls(copied, ends - first, names)

    @property
    def size(self) -> int:
        """Number of bytes of the images."""
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> bytes:
        return self.data[self.ends[index] : self.ends[index + 1]]


class RowGroups:
    """The images of the row groups that were read last; for several threads.

    Parquet reads whole row groups, of 100 images or more, and training asks for single images in
    random order. Row groups are therefore kept, up to a number of bytes. Pickling drops them.

    Args:
      budget: maximum number of bytes to keep. The row group that was read last is kept in any case.

    Attributes:
      reads: number of row groups that were read from files.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.reads = budget, 0
        self._lock = threading.Lock()
        # In the order of last use.
        self._kept: dict[tuple[str, int], concurrent.futures.Future[Images]] = {}
        self._metadata: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, int]:
        return {"budget": self.budget}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(state["budget"])  # type: ignore[misc]

    @property
    def size(self) -> int:
        """Number of bytes that are kept."""
        with self._lock:
            return sum(_size(group) for group in self._kept.values())

    def get(self, path: str, group: int, column: str) -> Images:
        """Returns the images of a row group.

        Threads that want the same row group wait for the first of them to read it.

        Args:
          path: the file.
          group: number of the row group.
          column: name of the column.
        """
        key = path, group
        with self._lock:
            known = self._kept.pop(key, None)
            wanted = self._kept[key] = known or concurrent.futures.Future()
        if known is None:
            try:
                wanted.set_result(self._read(path, group, column))
            except BaseException as error:
                with self._lock:
                    self._kept.pop(key, None)
                wanted.set_exception(error)
            self._shrink(key)
        return wanted.result()

    def _read(self, path: str, group: int, column: str) -> Images:
        """Reads the images of a row group from its file."""
        import pyarrow.parquet as pq

        # An open file is not for several threads; its metadata are, and are slow to parse.
        files, place = _located(path)
        metadata = self._metadata.get(path)
        guard = contextlib.nullcontext() if files is None else refusals()
        with guard, pq.ParquetFile(place, metadata=metadata, filesystem=files) as file:
            self._metadata[path] = file.metadata
            self.reads += 1
            return Images.of(file.read_row_group(group, [column], use_threads=False).column(0))

    def _shrink(self, newest: tuple[str, int]) -> None:
        """Drops the row groups that were not used for longest, down to the budget."""
        with self._lock:
            total = sum(_size(group) for group in self._kept.values())
            for key in [*self._kept]:
                if total <= self.budget:
                    return
                if key != newest and self._kept[key].done():
                    total -= _size(self._kept.pop(key))


def _size(group: concurrent.futures.Future[Images]) -> int:
    """Returns the bytes of a row group; 0 while it is being read."""
    if not group.done() or group.exception():
        return 0
    return group.result().size


@dataclasses.dataclass(frozen=True)
class ParquetRecords(Sequence[Any]):
    """Random access to the rows of Parquet files.

    Attributes:
      files: path of each file.
      image: name of the column with the images.
      labels: label of each row.
      groups: file and number within it of each row group.
      starts: the first row of each row group.
      cache: row groups that are kept.
    """

    files: tuple[str, ...]
    image: str
    labels: Int64[np.ndarray, " n"]
    groups: Int64[np.ndarray, "groups 2"]
    starts: Int64[np.ndarray, " groups"]
    cache: RowGroups

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        place = int(np.searchsorted(self.starts, index, "right")) - 1
        file, group = self.groups[place].tolist()
        images = self.cache.get(self.files[file], group, self.image)
        row = int(index - self.starts[place])
        return {
            "image": images[row],
            "label": int(self.labels[index]),
            "file_name": images.names[row] or "",
        }


@dataclasses.dataclass(frozen=True)
class _Columns:
    """The columns of a file that are used, and the names of the classes."""

    image: str
    label: str
    classes: tuple[str, ...]
    multi_label: bool


def open_parquet(source: str | None, cache_bytes: int, multi_label: bool = False) -> Store:
    """Opens a folder of Parquet files.

    Args:
      source: the folder; see `flaxres.data._shards.find_shards`.
      cache_bytes: maximum number of bytes of row groups to keep, of all splits.
      multi_label: images have any number of labels.

    Raises:
      InputError: the folder has no such files, a file is damaged, does not have one image and one
        class label, or has other classes than the rest, or a split is empty.
    """
    root, found = find_shards("parquet", source, ".parquet")
    first = _columns(next(iter(found.values()))[0], multi_label)
    cache, facts = RowGroups(cache_bytes), ["parquet", *first.classes]
    splits = {}
    for name, paths in found.items():
        splits[name] = _split(name, paths, first, cache)
        facts += [
            f"{name}\0{path.name}\0{path.stat().st_size}\0{_footer_digest(path)}" for path in paths
        ]
    digest = digests.words_digest(facts)
    return Store("parquet", root, first.classes, digest, splits, REMEDY)


def _split(name: str, paths: list[pathlib.Path], columns: _Columns, cache: RowGroups) -> Split:
    """Reads the index and the labels of the files of a split."""
    labels, groups, counts, rows = [], [], [], []
    for number, path in enumerate(paths):
        if (actual := _columns(path, columns.multi_label)) != columns:
            raise InputError(
                f"{str(path)!r} has other columns or classes than the first file ({actual.image}, "
                f"{actual.label}, {len(actual.classes)} classes): keep one dataset in a folder"
            )
        with _opened(path) as file:
            _require_bytes(path, file.metadata, columns)
            try:
                column = file.read([columns.label]).column(0)
            except (OSError, ValueError) as error:
                _raise_refusal(path, error)
                raise _damaged(path, error) from error
            metadata = file.metadata
        labels.append(column if columns.multi_label else column.fill_null(-1).to_numpy())
        rows.append(metadata.num_rows)
        for group in range(metadata.num_row_groups):
            if count := metadata.row_group(group).num_rows:
                groups.append((number, group))
                counts.append(count)
    if not sum(rows):
        raise InputError(f"split {name!r} in {str(paths[0].parent)!r} is empty: choose another")
    sets, ends = None, np.cumsum(counts, dtype=np.int64)
    if columns.multi_label:
        several = [row or () for column in labels for row in column.to_pylist()]
        known, sets = numbered_sets(
            several, len(columns.classes), lambda row: f"row {row:,} of split {name!r}"
        )
    else:
        known = np.concatenate(labels).astype(np.int64)
    records = ParquetRecords(
        tuple(map(str, paths)),
        columns.image,
        known,
        np.asarray(groups, np.int64),
        ends - np.asarray(counts, np.int64),
        cache,
    )
    size = sum(path.stat().st_size for path in paths)
    return Split(records, known, tuple(zip(records.files, rows, strict=True)), size, sets)


def _kind(feature: Any) -> str | None:
    """Returns the type of a feature of `datasets`; `LABELS` for a list of class labels."""
    if isinstance(feature, list):  # as old versions write it
        inner = feature[0]
    elif (feature or {}).get("_type") in ("List", "LargeList", "Sequence"):
        inner = feature.get("feature")
    else:
        return (feature or {}).get("_type")
    return LABELS if (inner or {}).get("_type") == "ClassLabel" else "List"


def _columns(path: pathlib.Path, multi_label: bool) -> _Columns:
    """Returns the columns of a file by the metadata that `datasets` writes."""
    import pyarrow as pa

    with _opened(path) as file:
        schema = file.schema_arrow
    stored = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(stored)["info"]["features"] if stored else {}
        types = {name: _kind(feature) for name, feature in features.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error

    def only(wanted: str) -> str:
        names: list[str] = [
            name for name, kind in types.items() if kind == wanted and name in schema.names
        ]
        other = "ClassLabel" if wanted == LABELS else LABELS
        if not names and wanted != "Image" and other in types.values():
            raise InputError(
                f"{str(path)!r} has a column of type {other}: set data.multi_label="
                f"{not multi_label}"
            )
        if len(names) != 1:
            raise InputError(
                f"{str(path)!r} has {len(names)} columns of type {wanted} ({', '.join(names)}; all "
                f"columns: {', '.join(schema.names)}): the rule is one, as datasets.Features "
                "declares them; cast or remove columns and write the file again"
            )
        return names[0]

    image, label = only("Image"), only(LABELS if multi_label else "ClassLabel")
    struct = schema.field(image).type
    if not pa.types.is_struct(struct) or struct.get_field_index("bytes") < 0:
        raise InputError(
            f"column {image!r} of {str(path)!r} is of type {struct}: the rule is a struct of bytes "
            "and path; write the file again with a recent version of datasets"
        )
    kind = schema.field(label).type
    if not pa.types.is_integer(kind.value_type if multi_label else kind):
        raise InputError(
            f"column {label!r} of {str(path)!r} is of type {kind}: the rule is integers; write the "
            "file again"
        )
    feature = features[label]
    if multi_label:
        feature = feature[0] if isinstance(feature, list) else feature["feature"]
    return _Columns(image, label, tuple(map(str, feature.get("names") or ())), multi_label)


def _require_bytes(path: pathlib.Path, metadata: Any, columns: _Columns) -> None:
    """Refuses a file that holds paths of images instead of the images."""
    for group in range(min(metadata.num_row_groups, 1)):
        row_group = metadata.row_group(group)
        for number in range(metadata.num_columns):
            column = row_group.column(number)
            if column.path_in_schema != f"{columns.image}.bytes" or not column.statistics:
                continue
            if 0 < row_group.num_rows == column.statistics.null_count:
                raise InputError(
                    f"{str(path)!r} holds paths of images without their bytes: write it again with "
                    "push_to_hub(embed_external_files=True), or read the images as a folder"
                )


def _located(path: str) -> tuple[Any, str]:
    """Returns the file system of an address and the path in it; None and the path for a path."""
    return file_system(path) if is_address(path) else (None, path)


def _opened(path: pathlib.Path) -> Any:
    """Opens a Parquet file."""
    import pyarrow.parquet as pq

    files, place = _located(str(path))
    try:
        return pq.ParquetFile(place, filesystem=files)
    except (OSError, ValueError) as error:
        _raise_refusal(path, error)
        raise _damaged(path, error) from error


def _raise_refusal(path: pathlib.Path, error: Exception) -> None:
    """Raises an error of a store again; pyarrow reports damage by `OSError` itself."""
    if is_refusal(path, error) and type(error) is not OSError:
        raise error


def _footer_digest(path: pathlib.Path) -> str:
    """Returns the SHA-256 of the footer of a file that `_opened` opens."""
    with path.open("rb") as file:
        file.seek(-8, 2)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, 2)
        return hashlib.sha256(file.read(length)).hexdigest()


def _damaged(path: pathlib.Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())
    return InputError(
        f"{str(path)!r} can't be read as Parquet ({reason}): it is cut or damaged; download or "
        "write it again"
    )
