"""ResNet-50 on ImageNet in 16 epochs: the recipe of FFCV (libffcv/ffcv-imagenet).

    python train.py --config configs/imagenet/ffcv_resnet50_16.py --workdir runs/ffcv_resnet50_16

Batch 8 x 512, SGD with momentum 0.9, learning rate from 1.7e-4 to 1.7 in 2 epochs and on a line to
zero, weight decay 1e-4 (FFCV decays the head's bias too), label smoothing 0.1, BlurPool, float16.
Training at 160 pixels and, from epoch 12 on, at 192 (FFCV's ramp, rounded to 32 pixels as there);
evaluation at 256 pixels, averaged over the mirrored image.
Expected: top-1 73.8% (FFCV).
Hardware: 8 accelerators with 40 GB.
Cost: 2 A100-hours, by arithmetic: 16 epochs x 1,281,167 images x 2.76 GMACs (168 pixels on average,
blurring counted as a fifth), at the 2,470 images/s of 4.11 GMACs that NVIDIA reports for ResNet-50
on one A100.
"""

from flaxres import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    model=ModelConfig(name="resnet50", dtype="float16", bn_group=512, anti_alias="blur"),
    data=DataConfig(
        name="imagenet2012",
        eval_split="validation",
        image_size=160,
        progressive_sizes=((12, 192),),
        eval_size=256,
        eval_resize=293,
        eval_flip=True,
    ),
    optim=OptimConfig(
        learning_rate=1.7,
        weight_decay=1e-4,
        schedule="linear",
        warmup_epochs=2,
        warmup_scale=1e-4,
        label_smoothing=0.1,
    ),
    train=TrainConfig(batch_size=4096, eval_batch_size=1024, epochs=16),
)
