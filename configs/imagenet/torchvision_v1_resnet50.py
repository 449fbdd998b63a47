r"""ResNet-50 on ImageNet: torchvision's first recipe (the weights IMAGENET1K_V1).

    python train.py --config configs/imagenet/torchvision_v1_resnet50.py \
        --workdir runs/torchvision_v1_resnet50

Batch 8 x 32, SGD with momentum 0.9, learning rate 0.1, a tenth of it every 30 of 90 epochs, weight
decay 1e-4 on every parameter.
Expected: top-1 76.13% (torchvision).
Hardware: 8 accelerators with 32 images each, or one with 16 GB, in bfloat16.
Cost: 13 A100-hours, by arithmetic: 90 epochs x 1,281,167 images x 4.11 GMACs, at the 2,470 images/s
of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

from flaxres import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    model=ModelConfig(name="resnet50", dtype="bfloat16", bn_group=32),
    data=DataConfig(name="imagenet2012", eval_split="validation"),
    optim=OptimConfig(
        learning_rate=0.1,
        weight_decay=1e-4,
        decay_norm_and_bias=True,
        schedule="step",
        milestones=(30, 60),
    ),
    train=TrainConfig(batch_size=256, eval_batch_size=256, epochs=90),
)
