"""The settings of a run, in sections. `flaxres.config.sections` declares them."""

import dataclasses

from flaxres.config.sections.augment import AugmentConfig as AugmentConfig
from flaxres.config.sections.data import DataConfig as DataConfig
from flaxres.config.sections.model import ModelConfig as ModelConfig
from flaxres.config.sections.optim import OptimConfig as OptimConfig
from flaxres.config.sections.train import TrainConfig as TrainConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. A file in configs/ binds `config = Config(...)`.

    Examples:
      >>> config = Config(ModelConfig(name="resnet18"), train=TrainConfig(epochs=10))
      >>> config.optim.learning_rate
      0.1
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
