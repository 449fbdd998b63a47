r"""ResNet-50 on ImageNet: the hot recipe of MosaicML Composer, 270 epochs.

    python train.py --config configs/imagenet/composer_hot_resnet50.py \
        --workdir runs/composer_hot_resnet50

Batch 2,048, SGD with momentum 0.875 and decoupled weight decay 5e-4, learning rate 2.048 after 8
epochs of warmup, half a cosine to zero; binary cross entropy, the head's biases from -log(1000),
BlurPool, a moving average (of half-life 100 steps, taken every 20), label smoothing 0.13, mixup
0.25, SAM of radius 0.5 in every 5th step, RandAugment of one operation at 9, stochastic depth 0.1.
ColOut, which drops 5% of rows and columns, is left out. Sides grow from 104 to 176 pixels between
20% and 80% of the run, here in steps of 16; evaluation at 224 of short side 232.
Expected: top-1 the highest of the three (Composer).
Hardware: 8 accelerators with 256 images each, in bfloat16.
Cost: 15 A100-hours, by arithmetic: 270 epochs x 1,281,167 images x 1.57 GMACs (138 pixels on
average), at the 2,470 images/s of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

import math

from flaxres import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    model=ModelConfig(
        name="resnet50",
        dtype="bfloat16",
        bn_group=256,
        anti_alias="blur",
        head_bias=-math.log(1000),
        stochastic_depth=0.1,
    ),
    data=DataConfig(
        name="imagenet2012",
        eval_split="validation",
        image_size=104,
        progressive_sizes=((90.0, 120), (126.0, 136), (162.0, 152), (198.0, 168), (216.0, 176)),
        eval_resize=232,
    ),
    augment=AugmentConfig(auto="rand-m9-n1", mixup=0.25),
    optim=OptimConfig(
        "sgdw",
        2.048,
        0.875,
        weight_decay=5e-4,
        schedule="cosine",
        warmup_epochs=8,
        loss="binary_sum",
        label_smoothing=0.13,
        sam_rho=0.5,
        sam_every=5,
    ),
    train=TrainConfig(
        batch_size=2048, eval_batch_size=1024, epochs=270, ema_decay=0.5**0.2, ema_every=20
    ),
)
