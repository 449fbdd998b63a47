r"""ResNet-50 on ImageNet with batches of 8,192 (Goyal et al. 2017, table 1).

    python train.py --config configs/imagenet/goyal2017_8k_resnet50.py \
        --workdir runs/goyal2017_8k_resnet50

All other settings are those of `resnet50.py`. Expected: top-1 76.3% (the paper; 256 GPUs).
Cost: 13 A100-hours, by arithmetic: 90 epochs x 1,281,167 images x 4.11 GMACs, at the 2,470 images/s
of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

from flaxres import variant

config = variant(
    __file__,
    "resnet50.py",
    {"train.batch_size": 8192, "optim.learning_rate": 3.2, "optim.warmup_scale": 1 / 32},
)
