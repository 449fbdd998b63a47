"""A wide and shallow residual network on CIFAR-10 in less than an hour on two cores.

    python train.py --config configs/cifar10/quick.py --workdir runs/cifar10-quick

Three blocks of widths 16, 128 and 256: for the time of a ResNet-20's image this has three times its multiplications, since two cores do wide
convolutions at twice the rate of narrow ones. 24 epochs of Nesterov SGD in batches of 128, learning rate 0.2 after a warmup of 3 epochs, a line
to zero, weight decay 5e-4, label smoothing 0.1; 4 pixels of padding, a random crop and a mirror; evaluation averages an image and its mirror image.
"""

from flaxres import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    model=ModelConfig(name="resnet20", depths=(1, 1, 1), widths=(16, 128, 256)),
    data=DataConfig(name="cifar10", image_size=32, eval_size=32, eval_resize=32, crop="centre", eval_flip=True, resident=True),
    augment=AugmentConfig(shift=4),
    optim=OptimConfig(learning_rate=0.2, nesterov=True, weight_decay=5e-4, schedule="linear", warmup_epochs=3, label_smoothing=0.1),
    train=TrainConfig(batch_size=128, eval_batch_size=400, epochs=24, eval_every_epochs=2, checkpoint_every_epochs=2, log_every_steps=50),
)
