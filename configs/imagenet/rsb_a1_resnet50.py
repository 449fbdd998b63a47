"""ResNet-50 on ImageNet: procedure A1 of "ResNet strikes back" (Wightman et al. 2021, table 2).

    python train.py --config configs/imagenet/rsb_a1_resnet50.py --workdir runs/rsb_a1_resnet50

Batch 2,064, since the paper's 2,048 is not divisible by 3. LAMB with learning rate 5e-3 after 5
epochs of warmup from 1e-4, half a cosine to 1e-6, 600 epochs; weight decay 0.01, none on norms and
biases; the gradient's norm at most 1, as timm's LAMB has it. rand-m7-mstd0.5-inc1, mixup 0.2 or
cutmix 1 for each batch, binary cross entropy, label smoothing 0.1, 3 augmentations of an image in a
batch, stochastic depth 0.05. Training at 224 pixels, evaluation at 224 of short side 236 (crop
ratio 0.95), all bicubic.
Expected: top-1 80.4% (the paper, table 1).
Hardware: 8 accelerators with 80 GB, in bfloat16.
Cost: 86 A100-hours, by arithmetic: 600 epochs x 1,281,167 images x 4.11 GMACs, at the 2,470
images/s of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

from flaxres import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    model=ModelConfig(name="resnet50", dtype="bfloat16", bn_group=258, stochastic_depth=0.05),
    data=DataConfig(
        name="imagenet2012",
        eval_split="validation",
        eval_resize=236,
        crop_interpolation="bicubic",
        interpolation="bicubic",
        repeats=3,
    ),
    augment=AugmentConfig(auto="rand-m7-mstd0.5-inc1", mixup=0.2, cutmix=1.0),
    optim=OptimConfig(
        name="lamb",
        learning_rate=5e-3,
        weight_decay=0.01,
        clip_norm=1.0,
        schedule="cosine",
        warmup_epochs=5,
        warmup_scale=1e-4 / 5e-3,
        final_scale=1e-6 / 5e-3,
        loss="binary",
        label_smoothing=0.1,
    ),
    train=TrainConfig(batch_size=2064, eval_batch_size=1024, epochs=600),
)
