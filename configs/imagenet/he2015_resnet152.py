"""ResNet-152 on ImageNet: the recipe of the first paper (He et al. 2016).

    python train.py --config configs/imagenet/he2015_resnet152.py --workdir runs/he2015_resnet152

All other settings are those of `he2015_resnet50.py`. Expected: top-1 77.0% (of the authors' own
implementation).
Cost: 49 A100-hours, by arithmetic: 120 epochs x 1,281,167 images x 11.60 GMACs, at the 2,470
images/s of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

from flaxres import variant

config = variant(__file__, "he2015_resnet50.py", {"model.name": "resnet152_v1"})
