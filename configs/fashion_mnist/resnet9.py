"""A narrow ResNet-9 on Fashion-MNIST in a quarter of an hour on two cores.

    python train.py --config configs/fashion_mnist/resnet9.py --data.source DIR --workdir runs/fm

DIR holds the original four files of Xiao et al. 2017 (`train-images-idx3-ubyte.gz` and so on; on
Debian the package `dataset-fashion-mnist` installs them into `/usr/share/datasets/fashion-mnist`).

Network: three stages of widths 32, 64 and 128 with a residual block in the last two (Page 2018),
478,000 parameters. Training: 10 epochs of SGD with Nesterov's momentum in batches of 128; learning
rate 0.1 after a warmup of one epoch, then linear to zero; weight decay 5e-4, label smoothing 0.1; 2
pixels of padding, random crops and horizontal flips.

Expected: top-1 93.7% of the 10,000 test images, measured in 16 minutes on two cores that other work
shared (results/fashion_mnist_resnet9).
"""

from flaxres import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    model=ModelConfig(name="resnet9", depths=(1, 2, 2), widths=(32, 64, 128), stem_width=16),
    data=DataConfig(
        name="idx",
        image_size=28,
        eval_size=28,
        eval_resize=28,
        crop="centre",
        mean=(0.286, 0.286, 0.286),
        std=(0.353, 0.353, 0.353),
    ),
    augment=AugmentConfig(shift=2),
    optim=OptimConfig(
        learning_rate=0.1,
        nesterov=True,
        weight_decay=5e-4,
        schedule="linear",
        warmup_epochs=1,
        label_smoothing=0.1,
    ),
    train=TrainConfig(
        batch_size=128,
        eval_batch_size=400,
        epochs=10,
        eval_every_epochs=1,
        checkpoint_every_epochs=5,
        log_every_steps=50,
    ),
)
