"""ResNet-50 on ImageNet: the recipe of the first paper (He et al. 2016, section 3.4).

    python train.py --config configs/imagenet/he2015_resnet50.py --workdir runs/he2015_resnet50

Batch 256, SGD with momentum 0.9, learning rate 0.1, weight decay 1e-4 on every parameter. The paper
divides the rate by 10 when the error plateaus, in about 120 epochs; here at epochs 30, 60 and 90.
Its crops of 224 pixels from images of short side 256 to 480 are random resized crops of that range
of areas without a change of ratio, and its colour noise (PCA) is left out.
Expected: top-1 75.3% (of the authors' own implementation).
Hardware: 8 accelerators with 32 images each, in bfloat16; one with 16 GB does as well.
Cost: 17 A100-hours, by arithmetic: 120 epochs x 1,281,167 images x 4.11 GMACs, at the 2,470
images/s of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

from flaxres import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    model=ModelConfig(name="resnet50_v1", dtype="bfloat16", bn_group=32),
    data=DataConfig(
        name="imagenet2012", eval_split="validation", crop_scale=(0.16, 0.58), crop_ratio=(1.0, 1.0)
    ),
    optim=OptimConfig(
        learning_rate=0.1,
        weight_decay=1e-4,
        decay_norm_and_bias=True,
        schedule="step",
        milestones=(30, 60, 90),
    ),
    train=TrainConfig(batch_size=256, eval_batch_size=256, epochs=120),
)
