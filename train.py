"""Trains a residual network; the same program as `flaxres train`.

    python train.py --config imagenet/resnet50 --workdir runs/a --optim.learning-rate 0.4

Without arguments it trains on the bundled digits. `--help` lists every option. Exit codes: 0
finished, 1 a loss that is not finite, 2 refused input, 70 stuck, 74 a file that can't be written,
75 preempted after saving, 130 interrupted before training.
"""

import sys

from flaxres.cli._process import refusing
from flaxres.cli._train import train

if __name__ == "__main__":
    sys.exit(refusing(lambda: train(sys.argv[1:], "train.py")))
