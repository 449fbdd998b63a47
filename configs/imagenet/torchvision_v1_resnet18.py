r"""ResNet-18 on ImageNet: torchvision's first recipe.

    python train.py --config configs/imagenet/torchvision_v1_resnet18.py \
        --workdir runs/torchvision_v1_resnet18

All other settings are those of `torchvision_v1_resnet50.py`. Expected: top-1 69.76% (torchvision).
Cost: 6 A100-hours, by arithmetic: 90 epochs x 1,281,167 images x 1.82 GMACs, at the 2,470 images/s
of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

from flaxres import variant

config = variant(__file__, "torchvision_v1_resnet50.py", {"model.name": "resnet18"})
