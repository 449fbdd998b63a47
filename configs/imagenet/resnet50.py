"""ResNet-50 on ImageNet: 90 epochs with SGD (Goyal et al. 2017, sections 3 and 5.1).

    flaxres data prepare imagenet2012 --source DIR_WITH_THE_TARS
    python train.py --config configs/imagenet/resnet50.py --workdir runs/resnet50

The paper is "Accurate, large minibatch SGD". Batch 256, learning rate 0.1, divided by 10 at epochs
30, 60 and 80 after a warmup of 5 epochs; weight decay 1e-4, none on norms and biases; last gamma of
each block zero. Batch statistics are per 32 images, as in the paper, on any number of devices.

For a batch of 256k set `--train.batch-size` to it and `--optim.learning-rate` to 0.1k: nothing is
rescaled automatically. The warmup starts at 1/k of the peak (`--optim.warmup-scale`), here at the
peak itself.

On a folder of photographs: `--data.name folder --data.source DIR --data.eval-split val`.
Expected: top-1 76.4% on the 50,000 validation images (the paper, table 1: 23.60% error, 8 GPUs).
Cost: 90 x 1,281,167 images, 2.8e18 floating-point operations; at 2,500 images/s on one A100
(recipes' table of NVIDIA's figures) 13 hours.
"""

from flaxres import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    model=ModelConfig(name="resnet50", dtype="bfloat16", bn_group=32),
    data=DataConfig(name="imagenet2012", eval_split="validation"),
    optim=OptimConfig(
        learning_rate=0.1,
        weight_decay=1e-4,
        schedule="step",
        milestones=(30, 60, 80),
        warmup_epochs=5,
        warmup_scale=1.0,
    ),
    train=TrainConfig(batch_size=256, eval_batch_size=256, epochs=90),
)
