r"""ResNet-50 v1.5 on ImageNet in 50 epochs: NVIDIA's recipe.

    python train.py --config configs/imagenet/nvidia_resnet50_50.py \
        --workdir runs/nvidia_resnet50_50

All other settings are those of `nvidia_resnet50_90.py`. Expected: top-1 75.8% (NVIDIA).
Cost: 7 A100-hours, by arithmetic: 50 epochs x 1,281,167 images x 4.11 GMACs, at the 2,470 images/s
of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

from flaxres import variant

config = variant(__file__, "nvidia_resnet50_90.py", {"train.epochs": 50})
