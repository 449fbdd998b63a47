"""ResNet-34 on ImageNet: procedure A1 of "ResNet strikes back" (Wightman et al. 2021).

    python train.py --config configs/imagenet/rsb_a1_resnet34.py --workdir runs/rsb_a1_resnet34

All other settings are those of `rsb_a1_resnet50.py`. Expected: top-1 76.4% (the paper, at 224
pixels).
Cost: 77 A100-hours, by arithmetic: 600 epochs x 1,281,167 images x 3.67 GMACs, at the 2,470
images/s of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

from flaxres import variant

config = variant(__file__, "rsb_a1_resnet50.py", {"model.name": "resnet34"})
