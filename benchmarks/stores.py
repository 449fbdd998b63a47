"""Compares the forms in which a dataset is read, with each other and with peers.

    python -m benchmarks.stores [--json] [--pairs 5]
    python -m benchmarks.stores --records 1280000

The first takes 250 full-size ImageNet photographs, repeatedly, through a random resized crop of 224
pixels and a mirror to batches of 64 on the device, from ArrayRecord and from every form that is
read in place. `FORM_vs_arrayrecord` are ratios of images a second, medians of rounds in which all
take turns; above 1 the form is faster. `parquet_half` keeps half of the bytes of the dataset in
memory. The peers are `webdataset` and `datasets` behind a PyTorch DataLoader of two workers with
torchvision's transforms; `FORM_vs_PEER_in_torch` are ratios to them. A peer that is not installed
is named and left out. Nothing else may run meanwhile.

The second makes an index of so many records, and measures the seconds and MiB of opening it.
"""

import contextlib
import importlib.util
import pathlib
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import command
from benchmarks.forms import write_parquet, write_tar, write_tfrecord
from benchmarks.input import TORCH_TRANSFORMS, peer, photographs, rate
from flaxres.data import _index
from flaxres.data.datasets import open_or_prepare
from flaxres.data.loader import Speed
from flaxres.data.source import Source

MIB = 2**20

WEBDATASET = (
    TORCH_TRANSFORMS
    + """
import glob
import webdataset
samples = webdataset.WebDataset(sorted(glob.glob(folder + "/*.tar")), shardshuffle=False,
                                empty_check=False, workersplitter=None).repeat()
batches = loaded(samples.map(lambda sample: opened(sample["jpg"])))
"""
)

DATASETS = (
    TORCH_TRANSFORMS
    + """
import datasets
rows = datasets.load_dataset(folder, split="train", cache_dir=folder + "/cache")
rows = rows.cast_column("image", datasets.Image(decode=False))
batches = loaded(Rows(len(rows), lambda i: rows[i]["image"]["bytes"]))
"""
)

PEERS = {"webdataset": WEBDATASET, "datasets": DATASETS}
"""The programs of the peers by the package that they need."""

OF_PEER = {"webdataset": "webdataset", "datasets": "parquet"}
"""The form that each peer reads."""

OPEN = """
import sys, time
from benchmarks.loader_memory import resident_mib
from flaxres.data.datasets import open_or_prepare
import flaxres.data.stores
before, start = resident_mib(), time.perf_counter()
(source,) = open_or_prepare("webdataset", ["train"], sys.argv[1], sys.argv[2])
print(time.perf_counter() - start, resident_mib() - before, len(source))
"""


def write_forms(
    folder: pathlib.Path, root: pathlib.Path, copies: int = 1
) -> dict[str, dict[str, Any]]:
    """Writes a folder of images in every form; returns the arguments that open each.

    Args:
      folder: the folder of the forms.
      root: the images.
      copies: how often each image is written into larger files and lists.
    """
    names = sorted(path.relative_to(root).as_posix() for path in (root / "train").rglob("*.*"))
    rows = [(name, (root / name).read_bytes(), 0) for name in names] * copies
    size = sum(len(data) for _, data, _ in rows)
    classes = ("photograph",)
    write_parquet(folder / "parquet" / "train-00000-of-00001.parquet", rows, classes, group=50)
    members = [
        (f"{i:06d}.{suffix}", content)
        for i, (_, data, _) in enumerate(rows)
        for suffix, content in (("jpg", data), ("cls", b"0"))
    ]
    write_tar(folder / "webdataset" / "train-000000.tar", members)
    examples = [{"image": data, "label": 0} for _, data, _ in rows]
    write_tfrecord(folder / "tfrecord" / "train-00000-of-00001", examples)
    lists = folder / "manifest"
    lists.mkdir()
    (lists / "photographs").symlink_to(root)
    lines = [f"photographs/{name},photograph" for name, *_ in rows]
    (lists / "train.csv").write_text("\n".join(["path,label", *lines]))
    parquet = {"name": "parquet", "source": str(folder / "parquet")}
    return {
        "arrayrecord": {"name": "folder", "source": str(root)},
        "folder": {"name": "folder", "source": str(root), "copy": False},
        "parquet": parquet,
        "parquet_half": parquet | {"cache_mib": max(size // 2 // MIB, 1)},
        "webdataset": {"name": "webdataset", "source": str(folder / "webdataset")},
        "tfrecord": {"name": "tfrecord", "source": str(folder / "tfrecord")},
        "manifest": {"name": "manifest", "source": str(lists)},
    }


def opened_peers(stack: contextlib.ExitStack, folder: pathlib.Path) -> dict[str, Any]:
    """Starts the peers that are installed; returns what measures each."""
    peers: dict[str, Callable[[], float]] = {}
    for package, program in PEERS.items():
        if importlib.util.find_spec(package) and importlib.util.find_spec("torchvision"):
            files = folder / OF_PEER[package]
            peers[f"{package}_in_torch"] = stack.enter_context(peer(sys.executable, program, files))
        else:
            print(f"{package} with torchvision is not installed: left out", file=sys.stderr)
    return peers


def compare(pairs: int, quiet: bool) -> dict[str, float]:
    """Measures all forms in turn, and returns the figures."""
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = pathlib.Path(temporary)
        forms = write_forms(folder, photographs(folder).parents[1])
        sources: dict[str, Source] = {
            name: open_or_prepare(**form, splits=["train"], data_dir=temporary)[0]
            for name, form in forms.items()
        }
        peers = opened_peers(stack, folder)
        for measure in peers.values():
            measure()  # pays for the start
        rates: dict[str, list[float]] = {name: [] for name in (*sources, *peers)}
        for _ in range(pairs):
            for name in rates:
                value = peers[name]() if name in peers else rate(sources[name], Speed())
                rates[name].append(value)
            if not quiet:
                print("  ".join(f"{name} {rates[name][-1]:,.0f}" for name in rates), flush=True)
    return ratios(rates, list(peers))


def ratios(rates: dict[str, list[float]], peers: list[str]) -> dict[str, float]:
    """Returns medians of ratios, and of images a second."""

    def ratio(first: str, second: str) -> float:
        return statistics.median(a / b for a, b in zip(rates[first], rates[second], strict=True))

    forms = [name for name in rates if name not in (*peers, "arrayrecord")]
    figures = {f"{name}_vs_arrayrecord": ratio(name, "arrayrecord") for name in forms}
    for name in peers:
        form = OF_PEER[name.removesuffix("_in_torch")]
        figures[f"{form}_vs_{name}"] = ratio(form, name)
    return figures | {
        f"{name}_images_per_second": statistics.median(values) for name, values in rates.items()
    }


def opening(records: int) -> dict[str, float]:
    """Measures the opening of an index of so many records."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        tar = folder / "tars" / "train-000000.tar"
        write_tar(tar, [("0.jpg", b"image"), ("0.cls", b"0")])
        open_or_prepare("webdataset", ["train"], str(tar.parent), temporary)
        (kept,) = (folder / "webdataset").iterdir()
        made = _index.Index(
            [f"{i:08d}.jpg" for i in range(records)],
            np.zeros(records, np.int64),
            np.tile(np.array([[tarfile.BLOCKSIZE, 5]]), (records, 1)),
            np.zeros(records, np.int64),
        )
        _index._keep(made, kept)
        words = [sys.executable, "-c", OPEN, str(tar.parent), temporary]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        seconds, mib, count = map(float, done.stdout.split())
        assert count == records
    return {"records": records, "seconds": seconds, "mib": mib}


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="number of rounds (5)")
    parser.add_argument("--records", type=int, help="open an index of so many records instead")
    chosen = parser.parse_args()
    figures = opening(chosen.records) if chosen.records else compare(chosen.pairs, chosen.json)
    command.show(figures, chosen.json)


if __name__ == "__main__":
    main()
