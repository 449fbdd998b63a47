"""DenseNet-161 on ImageNet (Huang et al. 2017, section 4.2).

    python train.py --config configs/imagenet/densenet161.py --workdir runs/densenet161

All other settings are those of `densenet121.py`. Expected: top-1 77.38% (torchvision's weights).
Cost: 25 A100-hours, by arithmetic: 90 epochs x 1,281,167 images x 7.79 GMACs, at the 2,470 images/s
of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

from flaxres import variant

config = variant(__file__, "densenet121.py", {"model.name": "densenet161"})
