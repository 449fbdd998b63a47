"""ResNet-18 on ImageNet in 88 epochs: the recipe of FFCV.

    python train.py --config configs/imagenet/ffcv_resnet18_88.py --workdir runs/ffcv_resnet18_88

All other settings are those of `ffcv_resnet18_16.py`. Expected: top-1 72.4% (FFCV).
Cost: 3 A100-hours, by arithmetic: 88 epochs x 1,281,167 images x 1.02 GMACs (168 pixels on
average), at the 2,470 images/s of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

from flaxres import variant

config = variant(
    __file__, "ffcv_resnet18_16.py", {"train.epochs": 88, "data.progressive_sizes": ((71, 192),)}
)
