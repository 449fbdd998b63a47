"""Trains a residual network: `python train.py --config configs/imagenet/resnet50.py --workdir runs/a --optim.learning-rate 0.4`.

Without arguments it trains on the bundled digits. `--help` lists every option. Exit codes: 0 finished, 2 refused input, 75 preempted after saving.
"""

import pathlib
import sys

from flaxres.cli import refusing, train

if __name__ == "__main__":
    default = pathlib.Path(__file__).parent / "configs" / "digits.py"
    sys.exit(refusing(lambda: train(sys.argv[1:], str(default), "train.py")))
