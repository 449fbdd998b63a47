"""ResNet-101 on ImageNet: procedure A2 of "ResNet strikes back" (Wightman et al. 2021).

    python train.py --config configs/imagenet/rsb_a2_resnet101.py --workdir runs/rsb_a2_resnet101

All other settings are those of `rsb_a2_resnet50.py`. Expected: top-1 81.3% (the paper, at 224
pixels).
Cost: 82 A100-hours, by arithmetic: 300 epochs x 1,281,167 images x 7.83 GMACs, at the 2,470
images/s of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

from flaxres import variant

config = variant(__file__, "rsb_a2_resnet50.py", {"model.name": "resnet101"})
