"""ResNet-50 on ImageNet: the reference of MLPerf Training v4.0 at batch 3,200 (8 H100).

    python train.py --config configs/imagenet/mlperf_resnet50.py --workdir runs/mlperf_resnet50

LARS with learning rate 11 after 2 epochs of warmup, a polynomial of power 2 to 1e-4, momentum 0.9,
trust coefficient 0.001, weight decay 5e-5, label smoothing 0.1, batch statistics of 400 images, 37
epochs.
Expected: top-1 75.9%, the target of the benchmark.
Hardware: 8 accelerators with 400 images each, in bfloat16.
Cost: 5 A100-hours, by arithmetic: 37 epochs x 1,281,167 images x 4.11 GMACs, at the 2,470 images/s
of 4.11 GMACs that NVIDIA reports for ResNet-50 on one A100.
"""

from flaxres import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    model=ModelConfig(name="resnet50", dtype="bfloat16", bn_group=400),
    data=DataConfig(name="imagenet2012", eval_split="validation"),
    optim=OptimConfig(
        name="lars",
        learning_rate=11.0,
        weight_decay=5e-5,
        schedule="polynomial",
        warmup_epochs=2,
        final_scale=1e-4 / 11,
        label_smoothing=0.1,
    ),
    train=TrainConfig(batch_size=3200, eval_batch_size=1600, epochs=37),
)
