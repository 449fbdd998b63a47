"""Training with real input against training without any: `python -m benchmarks.end_to_end [--json]`.

ResNet-18 at 64 pixels, batch 64, on ImageNet photographs: full-size JPEGs, and after `flaxres data shrink` to a short side of 80 pixels. The same
compiled step is fed by the loader, and by one batch that stays on the device; measured in turn, median of pairs. Also prints what the loader gives
alone, and how long the step waits for it. On a CPU loader and step share the cores, so that decoding costs the step its own share of them, even
where the step never waits.

`fraction_of_step_rate`, `input_stall_percent`: of the shrunk photographs; `full_...`: of the full-size ones.
"""

import argparse
import json
import pathlib
import tempfile

from benchmarks.input import photographs
from flaxres import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from flaxres.data.datasets import open_or_prepare
from flaxres.data.prepare import shrink
from flaxres.data.sources import open_source
from flaxres.diagnostics.rates import rates_of
from flaxres.training.run import Run

BATCH, SIZE = 64, 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--short-side", type=int, default=80)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = str(photographs(pathlib.Path(folder)).parents[1])
        (full,) = open_or_prepare("folder", ["train"], root, folder)
        name, _, _ = shrink({"train": full}, chosen.short_side, 90, folder)
        small = open_source(name, "train", None, folder)
        config = Config(
            ModelConfig("resnet18"),
            DataConfig("folder", root, folder, image_size=SIZE, eval_size=SIZE, eval_resize=SIZE),
            optim=OptimConfig(learning_rate=0.01),
            train=TrainConfig(BATCH, BATCH, steps=100_000, devices=1),
        )
        figures = rates_of(Run(config, small, small), chosen.pairs, chosen.steps)
        figures |= {
            f"full_{name}": value
            for name, value in rates_of(Run(config, full, full), chosen.pairs, chosen.steps).items()
            if name[:4] != "step"
        }
    print(
        json.dumps(figures)
        if chosen.json
        else "\n".join(f"{name}: {value:,.3f}" for name, value in figures.items())
    )


if __name__ == "__main__":
    main()
