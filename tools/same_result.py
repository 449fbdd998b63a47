"""Compares the same run on 1, 2, 4 and 8 devices.

    JAX_ENABLE_X64=1 python -m tools.same_result --precision float64 --steps 20 --groups none,8

Trains ResNet-20 on the digits, and compares runs with the same statistics group. The program prints
in how many lines the ledgers (sample ids and a digest of the augmented images of each step) differ
from that of one device, and the largest relative difference of a final parameter array (largest
difference over largest value).
"""

import hashlib
import json
import os
import tempfile
from typing import Any, Literal

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
)

import jax
import jax.numpy as jnp
import numpy as np

import flaxres
from benchmarks import command
from flaxres import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from flaxres.data.order import training_ids
from flaxres.training.augmentation import augmented
from flaxres.training.mesh import split
from flaxres.training.run import feed, prepare_run

BATCH = 64


def run(config: Config) -> tuple[list[str], Any]:
    """Trains and returns the ledger, one line a step, and the final parameters and statistics."""
    run = prepare_run(config)
    state, step = run.first_state(), run.train_step()
    data, settings, seed = config.data, config.augment, config.train.seed
    dtype = jnp.promote_types(jnp.float32, config.model.compute_dtype)
    augment = jax.jit(
        lambda batch: augmented(batch, data, settings, seed, len(run.train), dtype),
        in_shardings=split(run.mesh),
        out_shardings=split(run.mesh),
    )
    ledger = []
    with feed(run, 0, print) as (batches, _):
        for number, batch in zip(range(run.steps), batches, strict=False):
            positions = np.asarray(batch["position"])
            repeats = config.data.repeats
            ids = training_ids(positions, len(run.train), seed, BATCH, repeats, run.balance)
            digest = hashlib.sha256(np.asarray(augment(batch)).tobytes()).hexdigest()
            ledger.append(f"{number} {ids.tolist()} {digest}")
            state, _ = step(state, np.uint32(seed), batch)
    return ledger, jax.device_get(state.variables)


def config_of(
    precision: Literal["float32", "float64"],
    group: int | None,
    steps: int,
    devices: int,
    data_dir: str,
    quick: bool,
) -> Config:
    """Returns the config of one run."""
    return Config(
        ModelConfig(
            "resnet20",
            depths=(1, 1, 1) if quick else None,
            dtype=precision,
            param_dtype=precision,
            bn_group=group,
        ),
        DataConfig(
            "digits", data_dir=data_dir, image_size=8, eval_size=8, eval_resize=8, crop="centre"
        ),
        AugmentConfig(shift=1),
        OptimConfig(learning_rate=0.1),
        TrainConfig(batch_size=BATCH, steps=steps, devices=devices),
    )


def largest_difference(ours: Any, theirs: Any) -> float:
    """Returns the largest relative difference of an array, over all arrays that are not zero."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(
        float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs if np.abs(b).max() > 0
    )


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--precision", choices=("float32", "float64"), default="float64")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--groups", default="none,8")
    parser.add_argument("--devices", default="1,2,4,8", help="the first is compared with")
    parser.add_argument("--quick", action="store_true", help="a network of three blocks")
    parser.add_argument("--native", action="store_true", help="use native convolutions and norms")
    chosen = parser.parse_args()
    if chosen.native:
        flaxres.use_native_convolutions()
    worst, differences, runs = 0.0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.groups.split(","):
            group = None if name == "none" else int(name)
            first: tuple[list[str], Any] | None = None
            for devices in map(int, chosen.devices.split(",")):
                config = config_of(
                    chosen.precision, group, chosen.steps, devices, folder, chosen.quick
                )
                ledger, final = run(config)
                first = first or (ledger, final)
                runs += 1
                differences += sum(a != b for a, b in zip(ledger, first[0], strict=True))
                error = largest_difference(final, first[1])
                worst = max(worst, error)
                if not chosen.json:
                    print(
                        f"bn_group {name}, {devices} devices: largest relative difference "
                        f"{error:.2e}, differing ledger lines {differences}"
                    )
    figures = {
        "runs": runs,
        "ledger_differences": differences,
        "largest_relative_difference": worst,
    }
    if chosen.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
