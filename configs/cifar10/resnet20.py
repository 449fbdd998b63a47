"""ResNet-20 on CIFAR-10: the paper's recipe (He et al. 2016, section 4.2).

    python train.py --config configs/cifar10/resnet20.py --workdir runs/cifar10-resnet20

64,000 steps of 128 (164 epochs); learning rate 0.1, divided by 10 after 32,000 and 48,000 steps;
weight decay 1e-4 on every parameter, as in the paper's own code; 4 pixels of padding, random crops
and horizontal flips. The archive is downloaded when it is first needed.
Hardware: two CPU cores, about an hour in bfloat16 (AVX512_BF16). Expected: test error 8.75% (the
paper, table 6), 8.27% (akamaster/pytorch_resnet_cifar10); measured here on CIFAR-10 recompressed as
JPEG, which costs some points: top-1 86.0% (results/cifar10_jpeg_resnet20).
"""

from flaxres import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

EPOCH = 50_000 / 128

config = Config(
    model=ModelConfig(name="resnet20"),
    data=DataConfig(
        name="cifar10", image_size=32, eval_size=32, eval_resize=32, crop="centre", resident=True
    ),
    augment=AugmentConfig(shift=4),
    optim=OptimConfig(
        learning_rate=0.1,
        weight_decay=1e-4,
        decay_norm_and_bias=True,
        schedule="step",
        milestones=(32_000 / EPOCH, 48_000 / EPOCH),
    ),
    train=TrainConfig(
        batch_size=128,
        eval_batch_size=400,
        steps=64_000,
        eval_every_epochs=4,
        checkpoint_every_epochs=4,
        log_every_steps=100,
    ),
)
