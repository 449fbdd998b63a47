"""Residual networks for JAX: Flax (Linen) modules, weights, and the trainer.

`import flaxres` loads jax and flax. Names that need further packages load them on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from flaxres.errors import InputError as InputError, missing_extra
from flaxres.models.densenet import DenseNet as DenseNet
from flaxres.models.registry import (
    ResNet18 as ResNet18,
    ResNet20 as ResNet20,
    ResNet32 as ResNet32,
    ResNet34 as ResNet34,
    ResNet44 as ResNet44,
    ResNet50 as ResNet50,
    ResNet56 as ResNet56,
    ResNet101 as ResNet101,
    ResNet110 as ResNet110,
    ResNet152 as ResNet152,
    ResNet200 as ResNet200,
    ResNet1202 as ResNet1202,
    create_model as create_model,
    list_models as list_models,
)
from flaxres.models.resnet import ResNet as ResNet
from flaxres.models.resnet9 import ResNet9 as ResNet9
from flaxres.models.resnetv2 import ResNetV2 as ResNetV2
from flaxres.ops.native import use_native_convolutions as use_native_convolutions

if TYPE_CHECKING:
    from flaxres.config.files import variant as variant
    from flaxres.config.schema import (
        AugmentConfig as AugmentConfig,
        Config as Config,
        DataConfig as DataConfig,
        ModelConfig as ModelConfig,
        OptimConfig as OptimConfig,
        TrainConfig as TrainConfig,
    )
    from flaxres.training.evaluation import Report as Report
    from flaxres.training.loop import evaluate as evaluate, fit as fit
    from flaxres.training.xla import compiler_options as compiler_options
    from flaxres.weights.hub import load_pretrained as load_pretrained
    from flaxres.weights.transfer import load_weights as load_weights, save_weights as save_weights

__version__ = "0.1.0"

LAZY = {
    **dict.fromkeys(
        ("Config", "ModelConfig", "DataConfig", "AugmentConfig", "OptimConfig", "TrainConfig"),
        "flaxres.config.schema",
    ),
    "variant": "flaxres.config.files",
    **dict.fromkeys(("fit", "evaluate"), "flaxres.training.loop"),
    "Report": "flaxres.training.evaluation",
    "load_pretrained": "flaxres.weights.hub",
    **dict.fromkeys(("load_weights", "save_weights"), "flaxres.weights.transfer"),
    "compiler_options": "flaxres.training.xla",
}


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module 'flaxres' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(LAZY[name]), name)
    except ModuleNotFoundError as error:
        if (refusal := missing_extra(error)) is None:
            raise
        raise ImportError(f"flaxres.{name}: {refusal}", name=error.name) from error


def __dir__() -> list[str]:
    return sorted([*globals(), *LAZY])
