r"""ResNet-50 on ImageNet: the mild recipe of MosaicML Composer, 36 epochs.

    python train.py --config configs/imagenet/composer_mild_resnet50.py \
        --workdir runs/composer_mild_resnet50

Batch 2,048, SGD with momentum 0.875 and decoupled weight decay 5e-4, learning rate 2.048 after 8
epochs of warmup, half a cosine to zero; binary cross entropy, the head's biases from -log(1000),
BlurPool, a moving average (of half-life 100 steps, taken every 20), label smoothing 0.08. Sides
grow from 88 to 176 pixels between 40% and 80% of the run, here in steps of 16; evaluation at 224 of
short side 232.
Expected: top-1 75% to 78.1% with less than 60 epochs (Composer).
Hardware: 8 accelerators with 256 images each, in bfloat16.
Cost: 2 A100-hours, by arithmetic: 36 epochs x 1,281,167 images x 1.29 GMACs (125 pixels on
average), at the 2,470 images/s of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

import math

from flaxres import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    model=ModelConfig(
        name="resnet50",
        dtype="bfloat16",
        bn_group=256,
        anti_alias="blur",
        head_bias=-math.log(1000),
    ),
    data=DataConfig(
        name="imagenet2012",
        eval_split="validation",
        image_size=88,
        progressive_sizes=(
            (17.0, 104),
            (19.6, 120),
            (22.3, 136),
            (24.9, 152),
            (27.5, 168),
            (28.8, 176),
        ),
        eval_resize=232,
    ),
    optim=OptimConfig(
        "sgdw",
        2.048,
        0.875,
        weight_decay=5e-4,
        schedule="cosine",
        warmup_epochs=8,
        loss="binary_sum",
        label_smoothing=0.08,
    ),
    train=TrainConfig(
        batch_size=2048, eval_batch_size=1024, epochs=36, ema_decay=0.5**0.2, ema_every=20
    ),
)
