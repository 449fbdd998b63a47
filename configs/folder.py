"""ResNet-18 from scratch on a folder of photographs, `<split>/<class>/*.jpg`.

    python train.py --config configs/folder.py --workdir runs/mine --data.source FOLDER

Batch 64, Nesterov SGD with learning rate 0.05, a warmup of 3 epochs and half a cosine to zero,
label smoothing 0.1. The splits are `train` and `val` (`--data.eval-split` for another).
Hardware: one GPU, or a few CPU cores for some thousand images at `--data.image-size 96
--data.eval-size 96 --data.eval-resize 110`.
Expected accuracy: depends on the data; look at curves.png.
"""

from flaxres import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

config = Config(
    model=ModelConfig(name="resnet18"),
    data=DataConfig(name="folder", eval_split="val"),
    optim=OptimConfig(
        learning_rate=0.05, nesterov=True, weight_decay=1e-4, warmup_epochs=3, label_smoothing=0.1
    ),
    train=TrainConfig(batch_size=64, eval_batch_size=64, epochs=50, log_every_steps=10),
)
