"""ResNet-18 on ImageNet in 16 epochs: the recipe of FFCV.

    python train.py --config configs/imagenet/ffcv_resnet18_16.py --workdir runs/ffcv_resnet18_16

All other settings are those of `ffcv_resnet50_16.py`. Expected: top-1 66.9% (FFCV).
Cost: 1 A100-hours, by arithmetic: 16 epochs x 1,281,167 images x 1.02 GMACs (168 pixels on
average), at the 2,470 images/s of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

from flaxres import variant

config = variant(
    __file__,
    "ffcv_resnet50_16.py",
    {
        "model.name": "resnet18",
        "model.bn_group": 128,
        "train.batch_size": 1024,
        "optim.learning_rate": 0.5,
        "optim.weight_decay": 5e-5,
    },
)
