"""ResNet-20 on CIFAR-10 in about an hour on two cores.

    python train.py --config configs/cifar10/quick.py --workdir runs/cifar10-quick

30 epochs of Nesterov SGD in batches of 128, learning rate 0.2 after a warmup of 4 epochs, half a cosine to zero, weight decay 5e-4, label smoothing
0.1; 4 pixels of padding, a random crop and a mirror. The archive is downloaded when it is first needed.
Expected: top-1 84.4% of the 10,000 test images, measured on recompressed JPEGs of them (the original pixels are easier: weights that have 91.7% on
those have 81.0% on these JPEGs).
Cost: 60 minutes of training measured on two busy cores at 414 images/s; 47 minutes at the 534 images/s of the same cores when idle.
"""

from flaxres import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    model=ModelConfig(name="resnet20"),
    data=DataConfig(name="cifar10", image_size=32, eval_size=32, eval_resize=32, crop="centre", resident=True),
    augment=AugmentConfig(shift=4),
    optim=OptimConfig(learning_rate=0.2, nesterov=True, weight_decay=5e-4, warmup_epochs=4, label_smoothing=0.1),
    train=TrainConfig(batch_size=128, eval_batch_size=400, epochs=30, eval_every_epochs=2, checkpoint_every_epochs=2, log_every_steps=50),
)
