r"""ResNet-50 v1.5 on ImageNet in 250 epochs: NVIDIA's recipe, with mixup.

    python train.py --config configs/imagenet/nvidia_resnet50_250.py \
        --workdir runs/nvidia_resnet50_250

All other settings are those of `nvidia_resnet50_90.py`. Expected: top-1 78.4% (NVIDIA).
Cost: 36 A100-hours, by arithmetic: 250 epochs x 1,281,167 images x 4.11 GMACs, at the 2,470
images/s of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

from flaxres import variant

config = variant(__file__, "nvidia_resnet50_90.py", {"train.epochs": 250, "augment.mixup": 0.2})
