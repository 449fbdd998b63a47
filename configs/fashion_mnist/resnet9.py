"""A narrow ResNet-9 on Fashion-MNIST in a quarter of an hour on two cores.

    python train.py --config configs/fashion_mnist/resnet9.py --data.source DIR --workdir runs/fm

DIR holds the original four files of Xiao et al. 2017 (`train-images-idx3-ubyte.gz` and so on; on
Debian the package `dataset-fashion-mnist` installs them into `/usr/share/datasets/fashion-mnist`).

The network and all other settings are those of `cifar10/resnet9`: 10 epochs of SGD on three stages
of widths 32, 64 and 128, with 478,000 parameters. Images get 2 pixels of padding, random crops and
horizontal flips.

Expected: top-1 93.7% of the 10,000 test images, measured in 16 minutes on two cores that other work
shared (results/fashion_mnist_resnet9).
"""

from flaxres import variant

GREY, SPREAD = 0.286, 0.353
SIZES = dict.fromkeys(("data.image_size", "data.eval_size", "data.eval_resize"), 28)

config = variant(
    __file__,
    "../cifar10/resnet9.py",
    {
        "data.name": "idx",
        **SIZES,
        "data.mean": (GREY, GREY, GREY),
        "data.std": (SPREAD, SPREAD, SPREAD),
        "augment.shift": 2,
    },
)
