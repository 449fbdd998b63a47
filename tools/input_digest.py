"""Compares the input of threads, processes, hosts and resumes: `python -m tools.input_digest`.

Loads two epochs of a folder of images with random resized crops, flips, colour jitter, RandAugment,
erasing, mixup, cutmix and repeated augmentation, and digests the record, the label and the
augmented pixels of every row. Prints how many rows differ from those of one process with one
thread:

- with 2 and 4 threads;
- with 1 and 2 loading processes;
- with 2 and 4 host processes (`--hosts`) joined on loopback, where each reads only its rows;
- with a stop and a restart at every batch.
"""

import argparse
import functools
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from PIL import Image

from benchmarks.scaling import loopback
from flaxres import AugmentConfig, Config, DataConfig, OptimConfig, TrainConfig
from flaxres.data.order import training_ids
from flaxres.training.augmentation import inputs
from flaxres.training.mesh import split
from flaxres.training.run import feed, prepare_run

BATCH, IMAGES = 24, 120


def photographs(root: pathlib.Path) -> None:
    """Writes random images of many sizes in two classes."""
    rng = np.random.default_rng(0)
    for split_name, count in (("train", IMAGES // 2), ("val", 1)):
        for name in ("first", "second"):
            folder = root / split_name / name
            folder.mkdir(parents=True)
            for i in range(count):
                height, width = rng.integers(40, 200, 2)
                coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
                image = coarse.resize((int(width), int(height)))
                image.save(folder / f"{i}.jpg", quality=90)


def config(root: str, data_dir: str, threads: int, workers: int) -> Config:
    """Returns a config with every augmentation."""
    return Config(
        data=DataConfig(
            "folder",
            root,
            data_dir,
            eval_split="val",
            image_size=48,
            threads=threads,
            workers=workers,
            repeats=2,
            progressive_sizes=((1.0, 64),),
        ),
        augment=AugmentConfig(
            color_jitter=(0.4, 0.4, 0.4, 0.1),
            auto="rand-m7-mstd0.5-inc1",
            erase=0.3,
            mixup=0.2,
            cutmix=1.0,
            mix_per="example",
            cutout=8,
        ),
        optim=OptimConfig(label_smoothing=0.1),
        train=TrainConfig(batch_size=BATCH, eval_batch_size=BATCH, epochs=2),
    )


@functools.cache
def augmenting(mesh: jax.sharding.Mesh, size: int, classes: int) -> Any:
    """Returns the augmentation of a step, compiled once for each size of images."""
    settings = config("", "", 1, 0)

    def augmented(batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return inputs(settings, batch, size, batch["position"][0] // np.uint32(BATCH), classes)

    return jax.jit(augmented, in_shardings=split(mesh), out_shardings=split(mesh))


def rows(config: Config, first: int = 0, stop: int | None = None) -> dict[int, str]:
    """Returns the digest of each position, for the rows that this process holds."""
    run, seed, repeats = prepare_run(config), config.train.seed, config.data.repeats
    augmented = augmenting(run.mesh, len(run.train), len(run.train.classes))
    digests: dict[int, str] = {}
    with feed(run, first, print) as (batches, _):
        for _, batch in zip(range(first, stop or run.steps), batches, strict=False):
            arrays = batch["position"], batch["label"], *augmented(batch)
            for shards in zip(*(array.addressable_shards for array in arrays), strict=True):
                positions, labels, images, targets = (np.asarray(part.data) for part in shards)
                records = training_ids(positions, len(run.train), seed, BATCH, repeats, run.balance)
                for i, position in enumerate(positions.tolist()):
                    pixels = digest(images[i], targets[i])
                    digests[position] = f"{records[i]} {labels[i]} {pixels}"
    return digests


def digest(image: np.ndarray, target: np.ndarray) -> str:
    """Returns the digest of an augmented image and its target.

    Sums of floats may differ in their last bit between programs; grey levels and percents may not.
    """
    exact = np.round(image * 50).astype(np.int32), np.round(target * 1000).astype(np.int32)
    return hashlib.sha256(b"".join(part.tobytes() for part in exact)).hexdigest()


def host(arguments: list[str]) -> None:
    """Prints the rows of one of several processes as JSON."""
    root, data_dir, address, count, rank = arguments
    jax.distributed.initialize(address, int(count), int(rank))
    print(json.dumps(rows(config(root, data_dir, 1, 0))))


def hosts(root: str, data_dir: str, count: int) -> dict[int, str]:
    """Returns the merged rows of `count` processes."""
    program = [sys.executable, "-m", "tools.input_digest", "--host"]
    words = [*program, root, data_dir, loopback(), str(count)]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=1"
    environment = os.environ | {"XLA_FLAGS": flags}
    processes = [
        subprocess.Popen([*words, str(rank)], stdout=subprocess.PIPE, text=True, env=environment)
        for rank in range(count)
    ]
    merged: dict[int, str] = {}
    for process in processes:
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0
        lines = json.loads(output.splitlines()[-1])
        part = {int(position): row for position, row in lines.items()}
        assert not part.keys() & merged.keys(), "two hosts read the same row"
        merged |= part
    return merged


def main() -> None:
    if sys.argv[1:2] == ["--host"]:
        host(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--hosts", default="2,4", help="numbers of host processes")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = str(pathlib.Path(folder) / "photographs")
        photographs(pathlib.Path(root))
        expected = rows(config(root, folder, 1, 0))
        steps = len(expected) // BATCH
        assert sorted(expected) == list(range(steps * BATCH))

        def differing(actual: dict[int, str]) -> int:
            changed = sum(actual.get(position) != row for position, row in expected.items())
            return changed + len(actual.keys() - expected.keys())

        figures = {
            f"{threads}_threads": differing(rows(config(root, folder, threads, 0)))
            for threads in (2, 4)
        }
        figures |= {
            f"{workers}_workers": differing(rows(config(root, folder, 1, workers)))
            for workers in (1, 2)
        }
        for count in map(int, chosen.hosts.split(",")):
            figures[f"{count}_hosts"] = differing(hosts(root, folder, count))
        one = config(root, folder, 2, 0)
        figures["resumed"] = sum(
            differing(rows(one, 0, at) | rows(one, at)) for at in range(1, steps)
        )
    figures |= {"rows": len(expected), "differing": sum(figures.values())}
    print(
        json.dumps(figures)
        if chosen.json
        else "\n".join(f"{name}: {value}" for name, value in figures.items())
    )


if __name__ == "__main__":
    main()
