r"""ResNet-50 v1.5 on ImageNet in 90 epochs: NVIDIA's recipe (Deep Learning Examples).

    python train.py --config configs/imagenet/nvidia_resnet50_90.py \
        --workdir runs/nvidia_resnet50_90

Batch 2,048, SGD with momentum 0.875, learning rate 2.048 after 8 epochs of warmup, half a cosine to
zero, weight decay 1/32,768, none on norms; label smoothing 0.1.
Expected: top-1 77.1% (NVIDIA).
Hardware: 8 accelerators with 256 images each, in bfloat16.
Cost: 13 A100-hours, by arithmetic: 90 epochs x 1,281,167 images x 4.11 GMACs, at the 2,470 images/s
of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

from flaxres import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    model=ModelConfig(name="resnet50", dtype="bfloat16", bn_group=256),
    data=DataConfig(name="imagenet2012", eval_split="validation"),
    optim=OptimConfig(
        learning_rate=2.048,
        momentum=0.875,
        weight_decay=1 / 32768,
        schedule="cosine",
        warmup_epochs=8,
        label_smoothing=0.1,
    ),
    train=TrainConfig(batch_size=2048, eval_batch_size=1024, epochs=90),
)
