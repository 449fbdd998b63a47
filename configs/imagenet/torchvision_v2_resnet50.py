r"""ResNet-50 on ImageNet: torchvision's second recipe (the weights IMAGENET1K_V2).

    python train.py --config configs/imagenet/torchvision_v2_resnet50.py \
        --workdir runs/torchvision_v2_resnet50

Batch 8 x 128, SGD with momentum 0.9, learning rate 0.5 after 5 epochs of warmup from a hundredth,
half a cosine to zero, 600 epochs; weight decay 2e-5, none on norms (torchvision decays the head's
bias, flaxres does not); training at 176 pixels, evaluation at 224 from short side 232;
TrivialAugment, random erasing 0.1, mixup 0.2 or cutmix 1 for each batch, label smoothing 0.1, four
augmentations of an image in a batch. torchvision writes the decay of its average as 0.99998 and
rescales it: 1 - 0.00002 * 8 * 128 * 32 / 600 = 0.99891 every 32 steps. Until the warmup is over the
average is a copy of the weights.
Expected: top-1 80.86% (torchvision).
Hardware: 8 accelerators with 128 images each, in bfloat16.
Cost: 53 A100-hours, by arithmetic: 600 epochs x 1,281,167 images x 2.54 GMACs, at the 2,470
images/s of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

from flaxres import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    model=ModelConfig(name="resnet50", dtype="bfloat16", bn_group=128),
    data=DataConfig(
        name="imagenet2012", eval_split="validation", image_size=176, eval_resize=232, repeats=4
    ),
    augment=AugmentConfig(auto="ta_wide", erase=0.1, mixup=0.2, cutmix=1.0),
    optim=OptimConfig(
        learning_rate=0.5,
        weight_decay=2e-5,
        schedule="cosine",
        warmup_epochs=5,
        warmup_scale=0.01,
        label_smoothing=0.1,
    ),
    train=TrainConfig(
        batch_size=1024,
        eval_batch_size=1024,
        epochs=600,
        ema_decay=0.99891,
        ema_every=32,
        ema_start_epochs=5,
    ),
)
