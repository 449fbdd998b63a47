"""ResNet-18 on ImageNet: procedure A3 of "ResNet strikes back" (Wightman et al. 2021).

    python train.py --config configs/imagenet/rsb_a3_resnet18.py --workdir runs/rsb_a3_resnet18

All other settings are those of `rsb_a3_resnet50.py`. Expected: top-1 68.3% (the paper, at 224
pixels).
Cost: 3 A100-hours, by arithmetic: 100 epochs x 1,281,167 images x 0.93 GMACs, at the 2,470 images/s
of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

from flaxres import variant

config = variant(__file__, "rsb_a3_resnet50.py", {"model.name": "resnet18"})
