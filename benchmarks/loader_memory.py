"""Measures the resident memory of the loader: `python -m benchmarks.loader_memory [--json]`.

Loads 50,000 full-size ImageNet photographs (250, repeatedly) as random resized crops of 224 pixels
in batches of 64, from ArrayRecord or from `--form`, whose files hold each photograph `--copies`
times: 48 are more than the cache of Parquet's row groups holds. The figures are the resident memory
of this process with all libraries, in MiB: `mib_before` the first batch, `mib_at_10000` and
`mib_at_50000` images, and `mib_at_most`.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import tempfile

import jax

from benchmarks.input import BATCH, SIZE, photographs
from benchmarks.stores import write_forms
from flaxres.data.datasets import open_or_prepare
from flaxres.data.decode import RandomResizedCrop
from flaxres.data.loader import Loader, Speed
from flaxres.data.rows import training_rows
from flaxres.training.mesh import data_mesh, split

FORMS = ("arrayrecord", "folder", "parquet", "webdataset", "tfrecord", "manifest")


def resident_mib() -> float:
    """Returns the resident memory of this process."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--form", choices=FORMS, default="arrayrecord")
    parser.add_argument("--copies", type=int, default=1)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        # What writing them takes stays in another process.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            root = photographs(place).parents[1]
            forms = pool.apply(write_forms, (place, root, chosen.copies))
        (source,) = open_or_prepare(**forms[chosen.form], splits=["train"], data_dir=folder)
        crop = RandomResizedCrop(SIZE, seed=0)
        steps = -(-chosen.images // BATCH)
        rows = training_rows(len(source), BATCH, 0, 0, steps, lambda step: crop)
        figures, measured = {"mib_before": resident_mib()}, []
        with Loader(source, rows, split(data_mesh(1)), Speed()) as loader:
            for i, batch in enumerate(loader):
                jax.block_until_ready(batch["image"])
                measured.append(resident_mib())
                if (count := (i + 1) * BATCH) // 10_000 != i * BATCH // 10_000 and not chosen.json:
                    print(f"{count:,} images: {measured[-1]:,.0f} MiB", flush=True)
        figures |= {
            "mib_at_10000": measured[10_000 // BATCH],
            f"mib_at_{chosen.images}": measured[-1],
            "mib_at_most": max(measured),
        }
    print(
        json.dumps(figures)
        if chosen.json
        else "\n".join(f"{name}: {value:,.0f}" for name, value in figures.items())
    )


if __name__ == "__main__":
    main()
