"""Training with real input, compared to training on one batch that stays on the device.

    python -m benchmarks.end_to_end [--json]

ResNet-18 at 64 pixels, batch 64, on ImageNet photographs: full-size JPEGs, and after `flaxres data
shrink` to a short side of 80 pixels. The same compiled step is fed by the loader and by one batch
on the device, in turn; figures are medians of pairs. The program also prints the rate of the loader
alone, and how long the step waits for it. On a CPU, loader and step share the cores, so that
decoding slows the step down even where the step never waits.

`fraction_of_step_rate` and `input_stall_percent` belong to the shrunk photographs, `full_...` to
the full-size ones.
"""

import pathlib
import tempfile

from benchmarks import command
from benchmarks.input import photographs
from flaxres import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from flaxres.data.datasets import open_or_prepare
from flaxres.data.prepare import shrink
from flaxres.data.sources import open_source
from flaxres.diagnostics.rates import rates_of
from flaxres.training.run import Run

BATCH, SIZE = 64, 64


def main() -> None:
    parser = command.parser(__doc__)
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
        rates = rates_of(Run(config, full, full), chosen.pairs, chosen.steps)
        figures |= {f"full_{key}": rate for key, rate in rates.items() if key[:4] != "step"}
    command.show(figures, chosen.json, ",.3f")


if __name__ == "__main__":
    main()
