"""ResNet-110 on CIFAR-10: the paper's recipe (He et al. 2016, section 4.2).

    python train.py --config configs/cifar10/resnet110.py --workdir runs/cifar10-resnet110

All other settings are those of `resnet20.py`. Expected: test error 6.43% (the paper, table 6),
6.32% (akamaster/pytorch_resnet_cifar10). The paper trains at 0.01 until the training error is below
80% (about 400 steps); here a warmup of 400 steps from there.
Cost: at least 0.1 A100-hours, by arithmetic: 8.2 million images of 0.26 GMACs at the rate of
ResNet-50's (small images use a GPU less well).
"""

from flaxres import variant

config = variant(
    __file__,
    "resnet20.py",
    {"model.name": "resnet110", "optim.warmup_steps": 400, "optim.warmup_scale": 1.0 / 10},
)
