"""DenseNet-201 on ImageNet (Huang et al. 2017, section 4.2).

    python train.py --config configs/imagenet/densenet201.py --workdir runs/densenet201

All other settings are those of `densenet121.py`. Expected: top-1 77.28% (torchvision's weights).
Cost: 14 A100-hours, by arithmetic: 90 epochs x 1,281,167 images x 4.34 GMACs, at the 2,470 images/s
of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

from flaxres import variant

config = variant(__file__, "densenet121.py", {"model.name": "densenet201"})
