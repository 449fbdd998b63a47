r"""ResNet-50 on ImageNet: the medium recipe of MosaicML Composer, 135 epochs.

    python train.py --config configs/imagenet/composer_medium_resnet50.py \
        --workdir runs/composer_medium_resnet50

Batch 2,048, SGD with momentum 0.875 and decoupled weight decay 5e-4, learning rate 2.048 after 8
epochs of warmup, half a cosine to zero; binary cross entropy, the head's biases from -log(1000),
BlurPool, a moving average (of half-life 100 steps, taken every 20), label smoothing 0.1, mixup 0.2,
SAM of radius 0.5 in every 10th step. Sides grow from 88 to 176 pixels between 40% and 80% of the
run, here in steps of 16; evaluation at 224 of short side 232.
Expected: top-1 78.1% to 79.5% (Composer).
Hardware: 8 accelerators with 256 images each, in bfloat16.
Cost: 6 A100-hours, by arithmetic: 135 epochs x 1,281,167 images x 1.29 GMACs (125 pixels on
average), at the 2,470 images/s of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

from flaxres import variant

config = variant(
    __file__,
    "composer_mild_resnet50.py",
    {
        "train.epochs": 135,
        "data.progressive_sizes": (
            (63.8, 104),
            (73.6, 120),
            (83.5, 136),
            (93.3, 152),
            (103.1, 168),
            (108.0, 176),
        ),
        "augment.mixup": 0.2,
        "optim.label_smoothing": 0.1,
        "optim.sam_rho": 0.5,
        "optim.sam_every": 10,
    },
)
