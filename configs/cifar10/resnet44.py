"""ResNet-44 on CIFAR-10: the paper's recipe (He et al. 2016, section 4.2).

    python train.py --config configs/cifar10/resnet44.py --workdir runs/cifar10-resnet44

All other settings are those of `resnet20.py`. Expected: test error 7.17% (the paper, table 6), 6.9%
(akamaster/pytorch_resnet_cifar10).
Cost: at least 0.0 A100-hours, by arithmetic: 8.2 million images of 0.1 GMACs at the rate of
ResNet-50's (small images use a GPU less well).
"""

from flaxres import variant

config = variant(__file__, "resnet20.py", {"model.name": "resnet44"})
