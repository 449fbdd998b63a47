r"""ResNet-101 on ImageNet: torchvision's second recipe.

    python train.py --config configs/imagenet/torchvision_v2_resnet101.py \
        --workdir runs/torchvision_v2_resnet101

All other settings are those of `torchvision_v2_resnet50.py`. Expected: top-1 81.89% (torchvision).
Cost: 102 A100-hours, by arithmetic: 600 epochs x 1,281,167 images x 4.83 GMACs, at the 2,470
images/s of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

from flaxres import variant

config = variant(__file__, "torchvision_v2_resnet50.py", {"model.name": "resnet101"})
