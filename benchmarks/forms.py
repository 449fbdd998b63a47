"""Writes images in the forms in which datasets come, for benchmarks and tests."""

import io
import json
import pathlib
import tarfile
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tensorflow_datasets.proto import tf_example_pb2


def write_parquet(
    path: pathlib.Path,
    rows: Sequence[tuple[str, bytes | None, int | None]],
    classes: Sequence[str] = ("cat", "dog"),
    features: Any = None,
    group: int = 2,
) -> None:
    """Writes a Parquet file as `datasets` does, but with smaller row groups.

    Args:
      path: the file; its folder is made.
      rows: name, encoded image and label of each record.
      classes: names of the classes.
      features: what takes the place of the features in the metadata.
      group: number of records in a row group.
    """
    columns = {
        "image": [{"bytes": data, "path": name} for name, data, _ in rows],
        "label": [label for *_, label in rows],
    }
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    features = features or {
        "image": {"_type": "Image"},
        "label": {"names": [*classes], "_type": "ClassLabel"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema({"image": image, "label": pa.int64()}, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema), path, row_group_size=group)


def write_tar(path: pathlib.Path, members: Sequence[tuple[str, bytes]]) -> None:
    """Writes a tar as `webdataset.TarWriter` does.

    Args:
      path: the tar; its folder is made.
      members: name and content of each file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uname, info.gname = len(data), 0o444, "bigdata", "bigdata"
            tar.addfile(info, io.BytesIO(data))


def write_tfrecord(path: pathlib.Path, examples: Sequence[dict[str, Any]]) -> None:
    """Writes a TFRecord file of `tf.train.Example`, without checksums.

    Args:
      path: the file; its folder is made.
      examples: bytes or an integer for each feature.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for example in examples:
            message = tf_example_pb2.Example()
            for name, value in example.items():
                feature = message.features.feature[name]
                if isinstance(value, bytes):
                    feature.bytes_list.value.append(value)
                else:
                    feature.int64_list.value.append(value)
            data = message.SerializeToString()
            file.write(len(data).to_bytes(8, "little") + bytes(4) + data + bytes(4))
