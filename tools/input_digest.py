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
import contextlib
import dataclasses
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
from flaxres.config.files import from_sections, to_json
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


def config(data: DataConfig, batch: int = BATCH) -> Config:
    """Returns a config with every augmentation of these data."""
    return Config(
        data=dataclasses.replace(data, image_size=48, repeats=2, progressive_sizes=((1.0, 64),)),
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
        train=TrainConfig(batch_size=batch, eval_batch_size=batch, epochs=2),
    )


@functools.cache
def augmenting(mesh: jax.sharding.Mesh, size: int, classes: int, count: int) -> Any:
    """Returns the augmentation of a step, compiled once for each size of images."""
    settings = config(DataConfig(), count)

    def augmented(batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        step = batch["position"][0] // np.uint32(count)
        return inputs(settings, batch, settings.train.seed, size, step, classes)

    return jax.jit(augmented, in_shardings=split(mesh), out_shardings=split(mesh))


def rows(config: Config, first: int = 0, stop: int | None = None) -> dict[int, str]:
    """Returns the digest of each position, for the rows that this process holds."""
    run, seed, repeats = prepare_run(config), config.train.seed, config.data.repeats
    count = config.train.batch_size
    augmented = augmenting(run.mesh, len(run.train), len(run.train.classes), count)
    digests: dict[int, str] = {}
    with feed(run, first, print) as (batches, _):
        for _, batch in zip(range(first, stop or run.steps), batches, strict=False):
            arrays = batch["position"], batch["label"], *augmented(batch)
            for shards in zip(*(array.addressable_shards for array in arrays), strict=True):
                positions, labels, images, targets = (np.asarray(part.data) for part in shards)
                records = training_ids(positions, len(run.train), seed, count, repeats, run.balance)
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
    settings, address, count, rank = arguments
    jax.distributed.initialize(address, int(count), int(rank))
    print(json.dumps(rows(from_sections(json.loads(settings)))))


def hosts(settings: Config, count: int) -> dict[int, str]:
    """Returns the merged rows of `count` processes."""
    program = [sys.executable, "-m", "tools.input_digest", "--host"]
    words = [*program, to_json(settings), loopback(), str(count)]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=1"
    environment = os.environ | {"XLA_FLAGS": flags}
    with contextlib.ExitStack() as stack:
        # Not through pipes: a process that waits for a reader would keep the others from ending.
        outputs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(count)]
        processes = [
            subprocess.Popen([*words, str(rank)], stdout=output, env=environment)
            for rank, output in enumerate(outputs)
        ]
        merged: dict[int, str] = {}
        for process, output in zip(processes, outputs, strict=True):
            assert process.wait(timeout=900) == 0
            output.seek(0)
            lines = json.loads(output.read().splitlines()[-1])
            part = {int(position): row for position, row in lines.items()}
            assert not part.keys() & merged.keys(), "two hosts read the same row"
            merged |= part
    return merged


def differing(expected: dict[int, str], actual: dict[int, str]) -> int:
    """Returns how many rows differ, or are not in both."""
    changed = sum(actual.get(position) != row for position, row in expected.items())
    return changed + len(actual.keys() - expected.keys())


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
        data = DataConfig("folder", root, folder, eval_split="val")

        def settings(threads: int, workers: int = 0) -> Config:
            return config(dataclasses.replace(data, threads=threads, workers=workers))

        expected = rows(settings(1))
        steps = len(expected) // BATCH
        assert sorted(expected) == list(range(steps * BATCH))

        figures = {
            f"{threads}_threads": differing(expected, rows(settings(threads))) for threads in (2, 4)
        }
        figures |= {
            f"{workers}_workers": differing(expected, rows(settings(1, workers)))
            for workers in (1, 2)
        }
        for count in map(int, chosen.hosts.split(",")):
            figures[f"{count}_hosts"] = differing(expected, hosts(settings(1), count))
        one = settings(2)
        figures["resumed"] = sum(
            differing(expected, rows(one, 0, at) | rows(one, at)) for at in range(1, steps)
        )
    figures |= {"rows": len(expected), "differing": sum(figures.values())}
    print(
        json.dumps(figures)
        if chosen.json
        else "\n".join(f"{name}: {value}" for name, value in figures.items())
    )


if __name__ == "__main__":
    main()
