"""ResNet-50 on ImageNet: procedure A3 of "ResNet strikes back" (Wightman et al. 2021, table 2).

    python train.py --config configs/imagenet/rsb_a3_resnet50.py --workdir runs/rsb_a3_resnet50

Batch 2,048. LAMB with learning rate 8e-3 after 5 epochs of warmup from 1e-4, half a cosine to 1e-6,
100 epochs; weight decay 0.02, none on norms and biases; the gradient's norm at most 1, as timm's
LAMB has it. rand-m6-mstd0.5-inc1, mixup 0.1 or cutmix 1 for each batch, binary cross entropy.
Training at 160 pixels, evaluation at 224 of short side 236 (crop ratio 0.95), all bicubic.
Expected: top-1 78.1% (the paper, table 1).
Hardware: 8 accelerators with 80 GB, in bfloat16.
Cost: 7 A100-hours, by arithmetic: 100 epochs x 1,281,167 images x 2.10 GMACs, at the 2,470 images/s
of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

from flaxres import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    model=ModelConfig(name="resnet50", dtype="bfloat16", bn_group=256),
    data=DataConfig(
        name="imagenet2012",
        eval_split="validation",
        image_size=160,
        eval_resize=236,
        crop_interpolation="bicubic",
        interpolation="bicubic",
    ),
    augment=AugmentConfig(auto="rand-m6-mstd0.5-inc1", mixup=0.1, cutmix=1.0),
    optim=OptimConfig(
        name="lamb",
        learning_rate=8e-3,
        weight_decay=0.02,
        clip_norm=1.0,
        schedule="cosine",
        warmup_epochs=5,
        warmup_scale=1e-4 / 8e-3,
        final_scale=1e-6 / 8e-3,
        loss="binary",
    ),
    train=TrainConfig(batch_size=2048, eval_batch_size=1024, epochs=100),
)
