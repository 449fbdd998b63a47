"""ResNet-34 on ImageNet: procedure A3 of "ResNet strikes back" (Wightman et al. 2021).

    python train.py --config configs/imagenet/rsb_a3_resnet34.py --workdir runs/rsb_a3_resnet34

All other settings are those of `rsb_a3_resnet50.py`. Expected: top-1 73.0% (the paper, at 224
pixels).
Cost: 7 A100-hours, by arithmetic: 100 epochs x 1,281,167 images x 1.87 GMACs, at the 2,470 images/s
of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

from flaxres import variant

config = variant(__file__, "rsb_a3_resnet50.py", {"model.name": "resnet34"})
