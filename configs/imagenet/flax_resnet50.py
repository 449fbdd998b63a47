"""ResNet-50 on ImageNet: the recipe of Flax's own ImageNet example.

    python train.py --config configs/imagenet/flax_resnet50.py --workdir runs/flax_resnet50

Batch 1,024, Nesterov SGD, learning rate 0.4 after a warmup of 5 epochs, half a cosine to zero, 100
epochs; weight decay 1e-4 on kernels, bicubic crops.
Expected: top-1 76.54% (the example, on 32 TPU v3 cores).
Hardware: 8 accelerators with 128 images each, or one with 40 GB, in bfloat16.
Cost: 14 A100-hours, by arithmetic: 100 epochs x 1,281,167 images x 4.11 GMACs, at the 2,470
images/s of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

from flaxres import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    model=ModelConfig(name="resnet50", dtype="bfloat16", bn_group=32),
    data=DataConfig(
        name="imagenet2012",
        eval_split="validation",
        crop_interpolation="bicubic",
        interpolation="bicubic",
    ),
    optim=OptimConfig(
        learning_rate=0.4, nesterov=True, weight_decay=1e-4, schedule="cosine", warmup_epochs=5
    ),
    train=TrainConfig(batch_size=1024, eval_batch_size=1024, epochs=100),
)
