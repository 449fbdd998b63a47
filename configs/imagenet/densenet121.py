"""DenseNet-121 on ImageNet (Huang et al. 2017, section 4.2).

    python train.py --config configs/imagenet/densenet121.py --workdir runs/densenet121

Batch 256, Nesterov SGD with momentum 0.9, learning rate 0.1, a tenth of it from epochs 30 and 60 of
90, weight decay 1e-4 on every parameter.
Expected: top-1 74.75% (torchvision's weights, which are the authors').
Hardware: 4 accelerators with 64 images each, in bfloat16.
Cost: 9 A100-hours, by arithmetic: 90 epochs x 1,281,167 images x 2.87 GMACs, at the 2,470 images/s
of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

from flaxres import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    model=ModelConfig(name="densenet121", dtype="bfloat16", bn_group=64),
    data=DataConfig(name="imagenet2012", eval_split="validation"),
    optim=OptimConfig(
        learning_rate=0.1,
        nesterov=True,
        weight_decay=1e-4,
        decay_norm_and_bias=True,
        schedule="step",
        milestones=(30, 60),
    ),
    train=TrainConfig(batch_size=256, eval_batch_size=256, epochs=90),
)
