"""Measures the cost of augmentation on the device: `python -m benchmarks.augmentation [--json]`.

`cifar_percent_of_step` is what pad-and-crop and horizontal flips add to a training step of
ResNet-20 on resident CIFAR-sized data at batch 128; the median of pairs, measured in turn. The
other figures are the milliseconds an image of each augmentation alone, at 224 pixels and batch 64.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flaxres
from flaxres import AugmentConfig, Config, DataConfig, ModelConfig, TrainConfig
from flaxres.training.augmentation import inputs
from flaxres.training.mesh import data_mesh
from flaxres.training.optimizers import learning_rate, optimizer
from flaxres.training.state import create_state
from flaxres.training.steps import compiled_train_step

SEED = np.uint32(0)
SINGLE = {
    "flip_and_normalise": AugmentConfig(),
    "color_jitter": AugmentConfig(color_jitter=(0.4, 0.4, 0.4, 0.1)),
    "rand_augment": AugmentConfig(auto="rand-m7-mstd0.5-inc1"),
    "trivial_augment": AugmentConfig(auto="ta_wide"),
    "erase": AugmentConfig(erase=0.25),
    "mixup_and_cutmix": AugmentConfig(mixup=0.2, cutmix=1.0),
}


def resident_steps(augmentation: AugmentConfig, steps: int) -> Callable[[], float]:
    """Returns a function that runs training steps and returns the seconds they took."""
    config = Config(
        ModelConfig("resnet20"),
        DataConfig(image_size=32, crop="centre", resident=True),
        augmentation,
        train=TrainConfig(128, steps_per_dispatch=1),
    )
    model, mesh = flaxres.create_model("resnet20", num_classes=10), data_mesh(1)
    schedule = learning_rate(config.optim, 100, 50.0)
    tx = optimizer(config.optim, schedule)
    step = compiled_train_step(config, model, tx, schedule, mesh)
    dataset = {
        "image": jax.random.randint(jax.random.key(0), (5000, 32, 32, 3), 0, 256).astype(jnp.uint8),
        "label": jnp.arange(5000) % 10,
    }
    state: Any = create_state(model, tx, config, mesh)
    state, _ = step(state, SEED, dataset)

    def run() -> float:
        nonlocal state
        jax.block_until_ready(state)
        start = time.perf_counter()
        for _ in range(steps):
            state, _ = step(state, SEED, dataset)
        jax.block_until_ready(state)
        return time.perf_counter() - start

    return run


def milliseconds(augmentation: AugmentConfig) -> float:
    """Returns the milliseconds an image of an augmentation."""
    config = dataclasses.replace(Config(), augment=augmentation)
    batch = {
        "image": jax.random.randint(jax.random.key(0), (64, 224, 224, 3), 0, 256).astype(jnp.uint8),
        "label": jnp.arange(64),
        "position": jnp.arange(64, dtype=jnp.uint32),
    }
    change = jax.jit(lambda batch: inputs(config, batch, 0, 1_281_167, jnp.int32(0), 1000))
    jax.block_until_ready(change(batch))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(change(batch))
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times) / 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=5, help="steps in each measurement")
    chosen = parser.parse_args()
    plain = resident_steps(AugmentConfig(flip=False), chosen.steps)
    augmented = resident_steps(AugmentConfig(shift=4), chosen.steps)
    ratios = []
    for i in range(chosen.pairs):  # the order alternates
        seconds = {f: f() for f in ((plain, augmented) if i % 2 else (augmented, plain))}
        ratios.append(seconds[augmented] / seconds[plain])
    figures = {"cifar_percent_of_step": 100 * (statistics.median(ratios) - 1)}
    base = milliseconds(AugmentConfig(flip=False))
    figures |= {
        f"{name}_ms_an_image": milliseconds(augmentation) - (base if i else 0)
        for i, (name, augmentation) in enumerate(SINGLE.items())
    }
    print(
        json.dumps(figures)
        if chosen.json
        else "\n".join(f"{name}: {value:.3f}" for name, value in figures.items())
    )


if __name__ == "__main__":
    main()
