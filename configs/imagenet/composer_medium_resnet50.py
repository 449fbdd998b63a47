"""ResNet-50 on ImageNet: the medium recipe of MosaicML Composer, 135 epochs.

    python train.py --config configs/imagenet/composer_medium_resnet50.py --workdir runs/composer_medium_resnet50

Batch 2,048, SGD with momentum 0.875 and decoupled weight decay 5e-4, learning rate 2.048 after 8 epochs of warmup, half a cosine to zero; binary
cross entropy, the head's biases from -log(1000), BlurPool, a moving average (of half-life 100 steps, taken every 20), label smoothing 0.1, mixup
0.2, SAM of radius 0.5 in every 10th step. Sides grow from 88 to 176 pixels between 40% and 80% of the run, here in steps of 16; evaluation at 224
of short side 232.
Expected: top-1 78.1% to 79.5% (Composer).
Hardware: 8 accelerators with 256 images each, in bfloat16.
Cost: 6 A100-hours, by arithmetic: 135 epochs x 1,281,167 images x 1.29 GMACs (125 pixels on average), at the 2,470 images/s of 4.11 GMACs that
NVIDIA reports for ResNet-50 on one A100.
"""

import math

from flaxres import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    model=ModelConfig(name="resnet50", dtype="bfloat16", bn_group=256, anti_alias="blur", head_bias=-math.log(1000)),
    data=DataConfig(
        name="imagenet2012",
        eval_split="validation",
        image_size=88,
        progressive_sizes=((63.8, 104), (73.6, 120), (83.5, 136), (93.3, 152), (103.1, 168), (108.0, 176)),
        eval_resize=232,
    ),
    augment=AugmentConfig(mixup=0.2),
    optim=OptimConfig(
        "sgdw", 2.048, 0.875, weight_decay=5e-4, schedule="cosine", warmup_epochs=8, loss="binary_sum", label_smoothing=0.1, sam_rho=0.5, sam_every=10
    ),
    train=TrainConfig(batch_size=2048, eval_batch_size=1024, epochs=135, ema_decay=0.5**0.2, ema_every=20),
)
