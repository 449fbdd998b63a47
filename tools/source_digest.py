"""Compares the input of one dataset in every form: `python -m tools.source_digest PHOTOGRAPHS`.

PHOTOGRAPHS is a folder with train/<class>/*.jpg. Its images are written as Parquet by `datasets`,
as tars by `webdataset`, as TFRecord files by TensorFlow (by `--tensorflow PYTHON`, an interpreter
that has it; flaxres needs none), and as a list of paths. For each form, and for the folder in
place, it counts the rows of two epochs whose record, label or augmented pixels differ from those of
the prepared folder, with the augmentation of `tools.input_digest`:

- with 0 and 2 loading processes;
- with 2 host processes joined on loopback;
- with a stop and a restart at every batch (`--resumes`: at so many).

A form whose package is not installed is named and left out.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np

from flaxres import Config, DataConfig
from flaxres.data.datasets import open_or_prepare
from tools.input_digest import config, differing, hosts, rows

Row = tuple[str, bytes, int]
"""Name, encoded image and label of a record."""
SHARDS = 3

TENSORFLOW = """
import json, pathlib, sys
import tensorflow as tf
rows = [json.loads(line) for line in sys.stdin]
folder, shards = pathlib.Path(sys.argv[1]), int(sys.argv[2])
for shard in range(shards):
    part = rows[len(rows) * shard // shards : len(rows) * (shard + 1) // shards]
    with tf.io.TFRecordWriter(str(folder / f"train-{shard:05d}-of-{shards:05d}")) as writer:
        for path, name, label in part:
            def feature(**kind):
                return tf.train.Feature(**kind)
            image = tf.train.BytesList(value=[pathlib.Path(path).read_bytes()])
            number = tf.train.Int64List(value=[label + 1])
            text = tf.train.BytesList(value=[name.encode()])
            features = tf.train.Features(feature={
                "image/encoded": feature(bytes_list=image),
                "image/class/label": feature(int64_list=number),
                "image/filename": feature(bytes_list=text),
            })
            writer.write(tf.train.Example(features=features).SerializeToString())
"""
"""Writes the rows of its input as TensorFlow's scripts for ImageNet do: labels begin at 1."""


def shards(records: list[Row]) -> Iterator[tuple[int, list[Row]]]:
    """Iterates over the parts of the records, one a file."""
    for number in range(SHARDS):
        first, stop = (len(records) * at // SHARDS for at in (number, number + 1))
        yield number, records[first:stop]


def write_by_datasets(folder: pathlib.Path, records: list[Row], classes: tuple[str, ...]) -> None:
    """Writes Parquet files by `datasets`."""
    datasets: Any = importlib.import_module("datasets")
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(classes))}
    for number, part in shards(records):
        columns = {
            "image": [{"bytes": data, "path": name} for name, data, _ in part],
            "label": [label for *_, label in part],
        }
        dataset = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
        dataset.to_parquet(folder / f"train-{number:05d}-of-{SHARDS:05d}.parquet")


def write_by_webdataset(folder: pathlib.Path, records: list[Row], classes: tuple[str, ...]) -> None:
    """Writes tars by `webdataset`."""
    webdataset: Any = importlib.import_module("webdataset")
    written = 0
    for number, part in shards(records):
        with webdataset.TarWriter(str(folder / f"train-{number:06d}.tar")) as tar:
            for _, data, label in part:
                tar.write({"__key__": f"{written:08d}", "jpg": data, "cls": label})
                written += 1


def write_by_tensorflow(
    folder: pathlib.Path, root: pathlib.Path, records: list[Row], python: str
) -> None:
    """Writes TFRecord files by TensorFlow."""
    lines = [json.dumps([str(root / name), name, label]) for name, _, label in records]
    words = [python, "-c", TENSORFLOW, str(folder), str(SHARDS)]
    subprocess.run(words, input="\n".join(lines), text=True, check=True)


def write_list(folder: pathlib.Path, root: pathlib.Path, records: list[Row]) -> None:
    """Writes a list of paths and labels."""
    (folder / "photographs").symlink_to(root.resolve())
    lines = [json.dumps({"path": f"photographs/{name}", "label": n}) for name, _, n in records]
    (folder / "train.jsonl").write_text("\n".join(lines))


def write_forms(
    folder: pathlib.Path, root: pathlib.Path, tensorflow: str | None
) -> dict[str, DataConfig]:
    """Writes the photographs in every form, and returns the settings that read each."""
    (source,) = open_or_prepare("folder", ["train"], str(root), str(folder))
    names = [source.file_name(i) for i in range(len(source))]
    records = [
        (name, (root / name).read_bytes(), source.read(i)[1]) for i, name in enumerate(names)
    ]
    missing = {
        "parquet": None if importlib.util.find_spec("datasets") else "install datasets",
        "webdataset": None if importlib.util.find_spec("webdataset") else "install webdataset",
        "tfrecord": None if tensorflow else "give --tensorflow PYTHON",
        "manifest": None,
    }
    forms = {
        "prepared": DataConfig("folder", str(root)),
        "folder": DataConfig("folder", str(root), copy=False),
    }
    for name, remedy in missing.items():
        if remedy:
            print(f"{name} is left out: {remedy}", file=sys.stderr)
            continue
        place = folder / "forms" / name
        place.mkdir(parents=True)
        if name == "parquet":
            write_by_datasets(place, records, source.classes)
        elif name == "webdataset":
            write_by_webdataset(place, records, source.classes)
        elif name == "tfrecord":
            write_by_tensorflow(place, root, records, str(tensorflow))
        else:
            write_list(place, root, records)
        if name != "parquet":  # which holds the names
            (place / "classes.txt").write_text("\n".join(source.classes))
        forms[name] = DataConfig(name, str(place))
    common: dict[str, Any] = {"data_dir": str(folder), "eval_split": "train", "exif": True}
    return {name: dataclasses.replace(data, threads=2, **common) for name, data in forms.items()}


def compare(
    expected: dict[int, str], data: DataConfig, batch: int, resumes: int | None
) -> dict[str, int]:
    """Returns the number of rows that differ, for each way of loading."""

    def settings(workers: int = 0) -> Config:
        return config(dataclasses.replace(data, workers=workers), batch)

    stops = list(range(1, len(expected) // batch))
    if resumes is not None:
        stops = sorted(np.random.default_rng(0).choice(stops, resumes, replace=False).tolist())
    whole = rows(settings())
    figures = {
        "0_workers": differing(expected, whole),
        "2_workers": differing(expected, rows(settings(2))),
        "2_hosts": differing(expected, hosts(settings(), 2)),
        "resumed": 0,
    }
    for at in stops:
        before = {position: row for position, row in whole.items() if position < at * batch}
        figures["resumed"] += differing(expected, before | rows(settings(), at))
    return figures | {"resumes": len(stops)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs", type=pathlib.Path, help="folder of train/<class>/*.jpg")
    parser.add_argument("--tensorflow", metavar="PYTHON", help="an interpreter with TensorFlow")
    parser.add_argument("--batch", type=int, default=100, help="number of rows of a batch (100)")
    parser.add_argument("--resumes", type=int, help="number of batches to stop at (all)")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        forms = write_forms(pathlib.Path(temporary), chosen.photographs, chosen.tensorflow)
        expected = rows(config(forms["prepared"], chosen.batch))
        figures: dict[str, Any] = {}
        for name, data in forms.items():
            figures[name] = compare(expected, data, chosen.batch, chosen.resumes)
            if not chosen.json:
                print(f"{name}: {figures[name]}", flush=True)
    differ = sum(n for counts in figures.values() for way, n in counts.items() if way != "resumes")
    figures |= {"rows": len(expected), "differing": differ}
    print(json.dumps(figures) if chosen.json else f"{len(expected)} rows; {differ} differ")


if __name__ == "__main__":
    main()
