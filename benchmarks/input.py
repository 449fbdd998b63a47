"""Compares the input pipeline with peers: `python -m benchmarks.input [--json]`.

Each pipeline takes 250 full-size ImageNet photographs, repeatedly, through a random resized crop of
224 pixels and a horizontal flip to batches of 64 on the device. flaxres reads ArrayRecord. The
peers have the encoded files in memory:

- tf.data does what Flax's ImageNet example does (`decode_and_crop_jpeg`, bicubic, AUTOTUNE), in an
  environment that this program creates.
- PyTorch's DataLoader runs torchvision's RandomResizedCrop with two workers.

`full_vs_tfdata` and `full_vs_torch` are ratios of images a second; above 1 flaxres is faster.
`shrunk_vs_tfdata` compares flaxres after `flaxres data shrink` to a short side of 256 pixels and
quality 90 with tf.data on the full-size files. Each is the median of pairs, measured in turn.
Nothing else may run meanwhile.
"""

import argparse
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from typing import Any

import jax

from flaxres.cache import cache_folder
from flaxres.data import augment
from flaxres.data.decode import RandomResizedCrop
from flaxres.data.loader import Loader, Speed
from flaxres.data.prepare import prepare, shrink
from flaxres.data.rows import training_rows
from flaxres.data.source import Source
from flaxres.data.sources import open_source
from flaxres.training.mesh import data_mesh, split

ARCHIVE = pathlib.Path(__file__).parents[2] / "shared" / "data" / "imagenet_sample.tar"
BATCH, SIZE, SKIPPED, TIMED = 64, 224, 12, 25

TF_DATA = """
import os, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf
folder, batch, size, skipped, timed = sys.argv[1], *map(int, sys.argv[2:])
files = [open(os.path.join(folder, name), "rb").read() for name in sorted(os.listdir(folder))]

def crop(data):
    whole = tf.constant([0.0, 0.0, 1.0, 1.0], shape=[1, 1, 4])
    box, extent, _ = tf.image.sample_distorted_bounding_box(
        tf.io.extract_jpeg_shape(data), bounding_boxes=whole, min_object_covered=0.1,
        aspect_ratio_range=(3 / 4, 4 / 3), area_range=(0.08, 1.0), max_attempts=10,
        use_image_if_no_bounding_boxes=True)
    top, left, _ = tf.unstack(box)
    height, width, _ = tf.unstack(extent)
    image = tf.io.decode_and_crop_jpeg(data, tf.stack([top, left, height, width]), channels=3)
    image = tf.image.resize([image], [size, size], method=tf.image.ResizeMethod.BICUBIC)[0]
    image = tf.image.random_flip_left_right(tf.reshape(image, [size, size, 3]))
    image = (image - tf.constant([123.675, 116.28, 103.53])) / tf.constant([58.395, 57.12, 57.375])
    return tf.image.convert_image_dtype(image, tf.float32)

dataset = tf.data.Dataset.from_tensor_slices(files).repeat().shuffle(1000, seed=0)
dataset = dataset.map(crop, num_parallel_calls=tf.data.AUTOTUNE)
batches = iter(dataset.batch(batch, drop_remainder=True).prefetch(10))
take = lambda: next(batches)
"""

# What every peer behind PyTorch's DataLoader begins with.
TORCH_TRANSFORMS = """
import io, os, sys, time
sys.path.insert(0, os.getcwd())
from benchmarks.peers import torch_and_timm
torch, _ = torch_and_timm()
from PIL import Image
from torchvision import transforms
folder, batch, size, skipped, timed = sys.argv[1], *map(int, sys.argv[2:])
change = transforms.Compose([
    transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
    transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
opened = lambda data: change(Image.open(io.BytesIO(data)).convert("RGB"))
take = lambda: next(batches)

class Rows(torch.utils.data.Dataset):
    def __init__(self, count, read):
        self.count, self.read = count, read
    def __len__(self):
        return 10**9
    def __getitem__(self, i):
        return opened(self.read(i * 7919 % self.count))

loaded = lambda data: iter(torch.utils.data.DataLoader(data, batch, num_workers=2))
"""

TORCH = (
    TORCH_TRANSFORMS
    + """
files = [open(os.path.join(folder, name), "rb").read() for name in sorted(os.listdir(folder))]
batches = loaded(Rows(len(files), files.__getitem__))
"""
)

# For each line of input, prints the images a second of the next `timed` batches. It waits before it
# prints until its buffers are full again.
MEASURE = """
for _ in sys.stdin:
    for _ in range(skipped):
        take()
    start = time.perf_counter()
    for _ in range(timed):
        take()
    rate = batch * timed / (time.perf_counter() - start)
    time.sleep(2)
    print(rate, flush=True)
"""


def tensorflow_python() -> str:
    """Returns a Python with tensorflow-cpu, in an environment that is created once in the cache."""
    folder = cache_folder() / "benchmarks" / "tensorflow"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"creating an environment with tensorflow-cpu in {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "tensorflow-cpu"], check=True, stdout=sys.stderr
        )
        (folder / "ready").touch()
    return str(python)


@contextlib.contextmanager
def peer(python: str, program: str, folder: pathlib.Path) -> Iterator[Callable[[], float]]:
    """Starts a peer in a process; each call of the result measures its images a second."""
    words = [python, "-c", program + MEASURE, str(folder), *map(str, (BATCH, SIZE, SKIPPED, TIMED))]
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def measure() -> float:
        print("go", file=process.stdin, flush=True)
        return float(process.stdout.readline())  # type: ignore[union-attr]

    try:
        yield measure
    finally:
        process.kill()
        process.wait()


@jax.jit
def flipped(images: jax.Array, positions: jax.Array) -> jax.Array:
    """Flips a random half of the images, as the peers do on the host."""
    return augment.random_flip(augment.sample_keys(jax.random.key(0), positions), images)


def rate(source: Source, speed: Speed) -> float:
    """Returns the images a second of flaxres, from a start with empty buffers."""
    crop = RandomResizedCrop(SIZE, seed=0)
    rows = training_rows(len(source), BATCH, 0, 0, 10**6, lambda step: crop)
    with Loader(source, rows, split(data_mesh(1)), speed) as loader:
        batches = iter(loader)
        for _ in range(SKIPPED):
            batch = next(batches)
            flipped(batch["image"], batch["position"]).block_until_ready()
        start = time.perf_counter()
        for _ in range(TIMED):
            batch = next(batches)
            flipped(batch["image"], batch["position"]).block_until_ready()
        return BATCH * TIMED / (time.perf_counter() - start)


def photographs(folder: pathlib.Path) -> pathlib.Path:
    """Unpacks the archive as a dataset with one class; returns the folder of its files."""
    files = folder / "photographs" / "train" / "photograph"
    files.mkdir(parents=True)
    with tarfile.open(ARCHIVE) as tar:
        for member in tar:
            if member.isfile() and (file := tar.extractfile(member)):
                (files / pathlib.PurePosixPath(member.name).name).write_bytes(file.read())
    return files


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(
        "--workers", type=int, default=0, help="loading processes of flaxres instead of threads"
    )
    chosen = parser.parse_args()
    speed = Speed(workers=chosen.workers)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        files = photographs(folder)
        root = str(files.parents[1])
        prepare("folder", root, temporary)
        full = open_source("folder", "train", root, temporary)
        name, _, _ = shrink({"train": full}, 256, 90, temporary)
        small = open_source(name, "train", None, temporary)
        rates: dict[str, list[float]] = {"full": [], "shrunk": [], "tfdata": [], "torch": []}
        with (
            peer(tensorflow_python(), TF_DATA, files) as tf_data,
            peer(sys.executable, TORCH, files) as torch,
        ):
            tf_data(), torch()  # the first round pays for the start
            for _ in range(chosen.pairs):
                measured = {
                    "full": rate(full, speed),
                    "tfdata": tf_data(),
                    "shrunk": rate(small, speed),
                    "torch": torch(),
                }
                for key, value in measured.items():
                    rates[key].append(value)
                if not chosen.json:
                    print(
                        "  ".join(f"{key} {value:,.0f}" for key, value in measured.items()),
                        "images/s",
                        flush=True,
                    )
    for first, second in (("full", "tfdata"), ("full", "torch"), ("shrunk", "tfdata")):
        figures[f"{first}_vs_{second}"] = statistics.median(
            a / b for a, b in zip(rates[first], rates[second], strict=True)
        )
    figures["images_per_second"] = statistics.median(rates["full"])
    figures |= {
        f"{key}_images_per_second": statistics.median(rates[key])
        for key in ("shrunk", "tfdata", "torch")
    }
    print(
        json.dumps(figures)
        if chosen.json
        else "\n".join(f"{key}: {value:,.2f}" for key, value in figures.items())
    )


if __name__ == "__main__":
    main()
