"""ResNet-50 on ImageNet in 32 epochs: the recipe of FFCV.

    python train.py --config configs/imagenet/ffcv_resnet50_32.py --workdir runs/ffcv_resnet50_32

All other settings are those of `ffcv_resnet50_16.py`. Expected: top-1 76.6% (FFCV).
Cost: 3 A100-hours, by arithmetic: 32 epochs x 1,281,167 images x 2.76 GMACs (168 pixels on average,
blurring counted as a fifth), at the 2,470 images/s of 4.11 GMACs that NVIDIA reports for ResNet-50
on one A100.
"""

from flaxres import variant

config = variant(
    __file__, "ffcv_resnet50_16.py", {"train.epochs": 32, "data.progressive_sizes": ((25, 192),)}
)
