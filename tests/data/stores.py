"""The same photographs in every form that is read, and digests of what a loader makes of them.

`python -m tests.data.stores ADDRESS RANK JSON` prints the rows that one of two host processes
loads, for each dataset of a list.
"""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmarks.scaling import loopback
from flaxres.data.datasets import open_or_prepare
from flaxres.data.decode import RandomResizedCrop
from flaxres.data.loader import Loader, Speed
from flaxres.data.order import training_ids
from flaxres.data.rows import training_rows
from flaxres.data.source import Source
from flaxres.training.mesh import data_mesh, split

ROOT = pathlib.Path(__file__).parents[2]
BATCH, SEED = 4, 3
TRANSFORM = RandomResizedCrop(24, SEED, exif=True)


def write_folder(root: pathlib.Path) -> pathlib.Path:
    """Writes 14 training and 4 validation images of several formats and sizes in two classes."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 7), ("val", 2)):
        for label in ("cat", "dog"):
            (root / name / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (*rng.integers(30, 60, 2), 3), np.uint8)
                suffix, mode = (("jpg", "RGB"), ("png", "RGBA"), ("webp", "RGB"))[i % 3]
                image = Image.fromarray(pixels).convert(mode)
                image.save(root / name / label / f"{i}.{suffix}", quality=90)
    return root


def rows_in(root: pathlib.Path, source: Source) -> list[tuple[str, bytes, int]]:
    """Returns name, original file and label of the records of a source, in their order."""
    names = [source.file_name(i) for i in range(len(source))]
    return [(name, (root / name).read_bytes(), source.read(i)[1]) for i, name in enumerate(names)]


def loaded(
    source: Source, first: int = 0, stop: int | None = None, workers: int = 0
) -> dict[int, str]:
    """Returns the record, label and digest of the crop at each position of two epochs.

    Args:
      source: the split.
      first, stop: the steps to load.
      workers: number of loading processes.
    """
    stop = 2 * len(source) // BATCH if stop is None else stop
    rows = training_rows(len(source), BATCH, SEED, first, stop, lambda step: TRANSFORM)
    mesh, result = data_mesh(min(len(jax.devices()), BATCH)), {}
    with Loader(source, rows, split(mesh), Speed(2, workers)) as loader:
        for batch in loader:
            arrays = (batch[name] for name in ("position", "label", "image"))
            for shards in zip(*(array.addressable_shards for array in arrays), strict=True):
                positions, labels, images = (np.asarray(part.data) for part in shards)
                records = training_ids(positions, len(source), SEED, BATCH, 1)
                for i, position in enumerate(positions.tolist()):
                    pixels = hashlib.sha256(images[i].tobytes()).hexdigest()
                    result[position] = f"{records[i]} {labels[i]} {pixels}"
    return result


def on_hosts(datasets: list[dict[str, Any]]) -> list[dict[int, str]]:
    """Returns the rows that two host processes load together, for each dataset.

    Args:
      datasets: arguments of `open_or_prepare`.
    """
    words = [sys.executable, "-m", "tests.data.stores", loopback()]
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "PYTHONPATH": str(ROOT),
    }
    processes = [
        subprocess.Popen(
            [*words, str(rank), json.dumps(datasets)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        for rank in range(2)
    ]
    merged: list[dict[int, str]] = [{} for _ in datasets]
    for process in processes:
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 0
        for whole, lines in zip(merged, json.loads(output.splitlines()[-1]), strict=True):
            part = {int(position): row for position, row in lines.items()}
            assert part
            assert not part.keys() & whole.keys(), "two hosts loaded the same row"
            whole |= part
    return merged


def main(address: str, rank: str, datasets: str) -> None:
    jax.distributed.initialize(address, 2, int(rank))
    sources = [open_or_prepare(**dataset)[0] for dataset in json.loads(datasets)]
    print(json.dumps([loaded(source) for source in sources]))


if __name__ == "__main__":
    main(*sys.argv[1:])
