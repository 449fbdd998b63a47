"""A small residual network on CIFAR-10 in less than an hour on two cores.

    python train.py --config configs/cifar10/quick.py --workdir runs/cifar10-quick

Four stages of widths 16, 64, 128 and 256 with 1, 2, 2 and 1 blocks: twice the multiplications of a ResNet-20 in the same time, since CPUs do wide
convolutions at a better rate than narrow ones. 25 epochs of Nesterov SGD in batches of 256, learning rate 0.2 after a warmup of 4 epochs, a line to
zero, weight decay 5e-4, label smoothing 0.1; 4 pixels of padding, a random crop and a mirror; evaluation averages an image and its mirror image.
"""

from flaxres import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    model=ModelConfig(name="resnet20", depths=(1, 2, 2, 1), widths=(16, 64, 128, 256)),
    data=DataConfig(name="cifar10", image_size=32, eval_size=32, eval_resize=32, crop="centre", eval_flip=True, resident=True),
    augment=AugmentConfig(shift=4),
    optim=OptimConfig(learning_rate=0.2, nesterov=True, weight_decay=5e-4, schedule="linear", warmup_epochs=4, label_smoothing=0.1),
    train=TrainConfig(batch_size=256, eval_batch_size=400, epochs=25, eval_every_epochs=5, checkpoint_every_epochs=5, log_every_steps=50),
)
