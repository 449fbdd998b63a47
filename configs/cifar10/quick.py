"""ResNet-20 on CIFAR-10 in less than an hour on two cores.

python train.py --config configs/cifar10/quick.py --workdir runs/cifar10-quick
"""

from flaxres import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    model=ModelConfig(name="resnet20"),
    data=DataConfig(name="cifar10", image_size=32, eval_size=32, eval_resize=32, crop="centre", resident=True),
    augment=AugmentConfig(shift=4),
    optim=OptimConfig(learning_rate=0.2, nesterov=True, weight_decay=5e-4, warmup_epochs=4, label_smoothing=0.1),
    train=TrainConfig(batch_size=128, eval_batch_size=500, epochs=30, eval_every_epochs=2, checkpoint_every_epochs=2, log_every_steps=50),
)
