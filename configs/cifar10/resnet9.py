"""A narrow ResNet-9 on CIFAR-10 in six minutes on two cores, by SGD.

    python train.py --config configs/cifar10/resnet9.py --workdir runs/cifar10-resnet9

Network: three stages of widths 32, 64 and 128 with a residual block in the last two (Page 2018),
478,000 parameters. Training: 10 epochs of SGD with Nesterov's momentum in batches of 128; learning
rate 0.1 after a warmup of one epoch, then linear to zero; weight decay 5e-4, label smoothing 0.1; 4
pixels of padding, random crops and horizontal flips. The weights `resnet9.flaxres_cifar10` come
from it; `cifar10/quick` reaches more in half an hour.

Expected: top-1 83.8% on CIFAR-10 recompressed as JPEG of quality 75, for training and for testing,
which costs some points; five seeds, 5 to 10 minutes each on two cores of an AMD EPYC
(results/cifar10_jpeg_resnet9). Not measured on original images.
"""

from flaxres import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    model=ModelConfig(name="resnet9", depths=(1, 2, 2), widths=(32, 64, 128), stem_width=16),
    data=DataConfig(
        name="cifar10",
        image_size=32,
        eval_size=32,
        eval_resize=32,
        crop="centre",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.2435, 0.2616),
    ),
    augment=AugmentConfig(shift=4),
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
