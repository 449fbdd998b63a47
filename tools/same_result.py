"""Compares the same run on 1, 2, 4 and 8 devices: `JAX_ENABLE_X64=1 python -m tools.same_result --precision float64 --steps 20 --groups none,8`.

Trains ResNet-20 on the digits and prints, over all runs with the same statistics group: in how many places the ledgers (sample ids and a digest
of the augmented pictures of each step) differ from those of one device, and the largest relative difference of a final parameter array
(largest difference over largest value).
"""

import argparse
import dataclasses
import hashlib
import json
import os
import tempfile
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np

from flaxres import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from flaxres.data.order import training_ids
from flaxres.training.mesh import split
from flaxres.training.run import feed, prepare_run

BATCH = 64


def run(config: Config) -> tuple[list[str], Any]:
    """The ledger, one line a step, and the final parameters and statistics."""
    run = prepare_run(config)
    state, step = run.first_state(), run.train_step()
    seen = jax.jit(
        lambda batch: augmented(
            batch,
            config.data,
            config.augment,
            config.train.seed,
            len(run.train),
            jnp.promote_types(jnp.float32, config.model.compute_dtype),
        ),
        in_shardings=split(run.mesh),
        out_shardings=split(run.mesh),
    )
    ledger = []
    with feed(run, 0, print) as (batches, _):
        for number, batch in zip(range(run.steps), batches, strict=False):
            ids = training_ids(
                np.asarray(batch["position"]),
                len(run.train),
                config.train.seed,
                BATCH,
                config.data.repeats,
            )
            augmented = np.asarray(seen(batch))
            ledger.append(
                f"{number} {ids.tolist()} {hashlib.sha256(augmented.tobytes()).hexdigest()}"
            )
            state, _ = step(state, batch)
    return ledger, jax.device_get(state.variables)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", choices=("float32", "float64"), default="float64")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--groups", default="none,8")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    worst, differences, runs = 0.0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for group in chosen.groups.split(","):
            first: tuple[list[str], Any] | None = None
            for devices in (1, 2, 4, 8):
                model = ModelConfig(
                    "resnet20",
                    dtype=chosen.precision,
                    param_dtype=chosen.precision,
                    bn_group=None if group == "none" else int(group),
                )
                data = DataConfig(
                    "digits",
                    data_dir=folder,
                    image_size=8,
                    eval_size=8,
                    eval_resize=8,
                    crop="centre",
                )
                train = TrainConfig(batch_size=BATCH, steps=chosen.steps, devices=devices)
                config = dataclasses.replace(
                    Config(),
                    model=model,
                    data=data,
                    augment=AugmentConfig(shift=1),
                    optim=OptimConfig(learning_rate=0.1),
                    train=train,
                )
                ledger, final = run(config)
                first = first or (ledger, final)
                runs += 1
                differences += sum(a != b for a, b in zip(ledger, first[0], strict=True))
                error = max(
                    float(np.abs(a - b).max() / np.abs(b).max())
                    for a, b in zip(jax.tree.leaves(final), jax.tree.leaves(first[1]), strict=True)
                    if np.abs(b).max() > 0
                )
                worst = max(worst, error)
                if not chosen.json:
                    print(
                        f"bn_group {group}, {devices} devices: largest relative difference {error:.2e}, differing ledger lines {differences}"
                    )
    if chosen.json:
        print(
            json.dumps(
                {
                    "runs": runs,
                    "ledger_differences": differences,
                    "largest_relative_difference": worst,
                }
            )
        )


if __name__ == "__main__":
    main()
