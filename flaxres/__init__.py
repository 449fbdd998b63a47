"""Residual networks for JAX: Flax modules (Linen and NNX), weights, and the trainer.

`import flaxres` loads nothing. A name loads what it needs on first use: a network jax and flax.
"""

import importlib
from typing import TYPE_CHECKING, Any

from flaxres._version import __version__ as __version__
from flaxres.errors import InputError as InputError, missing_extra

if TYPE_CHECKING:
    from flaxres import nnx as nnx
    from flaxres.config.files import variant as variant
    from flaxres.config.schema import (
        AugmentConfig as AugmentConfig,
        Config as Config,
        DataConfig as DataConfig,
        ModelConfig as ModelConfig,
        OptimConfig as OptimConfig,
        TrainConfig as TrainConfig,
    )
    from flaxres.inference.runs import load_run as load_run
    from flaxres.models.clip import CLIPResNet as CLIPResNet
    from flaxres.models.convnext import ConvNeXt as ConvNeXt
    from flaxres.models.densenet import DenseNet as DenseNet
    from flaxres.models.named import (
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
    )
    from flaxres.models.nfnet import NFNet as NFNet
    from flaxres.models.registry import create_model as create_model, list_models as list_models
    from flaxres.models.regnet import RegNet as RegNet
    from flaxres.models.res2net import Res2Net as Res2Net
    from flaxres.models.resnest import ResNeSt as ResNeSt
    from flaxres.models.resnet import ResNet as ResNet
    from flaxres.models.resnet9 import ResNet9 as ResNet9
    from flaxres.models.resnetv2 import ResNetV2 as ResNetV2
    from flaxres.models.senet import LegacySENet as LegacySENet
    from flaxres.models.sknet import SKNet as SKNet
    from flaxres.models.summary import summary as summary
    from flaxres.ops.native import use_native_convolutions as use_native_convolutions
    from flaxres.training.evaluation import Report as Report
    from flaxres.training.loop import evaluate as evaluate, fit as fit
    from flaxres.training.xla import compiler_options as compiler_options
    from flaxres.weights.hub import load_pretrained as load_pretrained
    from flaxres.weights.hub_folder import save_pretrained as save_pretrained
    from flaxres.weights.push import push_to_hub as push_to_hub
    from flaxres.weights.tags import (
        Pretrained as Pretrained,
        list_pretrained as list_pretrained,
        pretrained_info as pretrained_info,
    )
    from flaxres.weights.transfer import load_weights as load_weights, save_weights as save_weights

# Packages, and the modules of names, that are loaded on first use.
_PACKAGES = ("models", "nnx", "ops")
_LAZY = {
    "AugmentConfig": "flaxres.config.schema",
    "CLIPResNet": "flaxres.models.clip",
    "Config": "flaxres.config.schema",
    "ConvNeXt": "flaxres.models.convnext",
    "DataConfig": "flaxres.config.schema",
    "DenseNet": "flaxres.models.densenet",
    "LegacySENet": "flaxres.models.senet",
    "ModelConfig": "flaxres.config.schema",
    "NFNet": "flaxres.models.nfnet",
    "OptimConfig": "flaxres.config.schema",
    "Pretrained": "flaxres.weights.tags",
    "RegNet": "flaxres.models.regnet",
    "Report": "flaxres.training.evaluation",
    "Res2Net": "flaxres.models.res2net",
    "ResNeSt": "flaxres.models.resnest",
    "ResNet": "flaxres.models.resnet",
    "ResNet9": "flaxres.models.resnet9",
    "ResNet18": "flaxres.models.named",
    "ResNet20": "flaxres.models.named",
    "ResNet32": "flaxres.models.named",
    "ResNet34": "flaxres.models.named",
    "ResNet44": "flaxres.models.named",
    "ResNet50": "flaxres.models.named",
    "ResNet56": "flaxres.models.named",
    "ResNet101": "flaxres.models.named",
    "ResNet110": "flaxres.models.named",
    "ResNet152": "flaxres.models.named",
    "ResNet200": "flaxres.models.named",
    "ResNet1202": "flaxres.models.named",
    "ResNetV2": "flaxres.models.resnetv2",
    "SKNet": "flaxres.models.sknet",
    "TrainConfig": "flaxres.config.schema",
    "compiler_options": "flaxres.training.xla",
    "create_model": "flaxres.models.registry",
    "evaluate": "flaxres.training.loop",
    "fit": "flaxres.training.loop",
    "list_models": "flaxres.models.registry",
    "list_pretrained": "flaxres.weights.tags",
    "load_pretrained": "flaxres.weights.hub",
    "load_run": "flaxres.inference.runs",
    "load_weights": "flaxres.weights.transfer",
    "pretrained_info": "flaxres.weights.tags",
    "push_to_hub": "flaxres.weights.push",
    "save_pretrained": "flaxres.weights.hub_folder",
    "save_weights": "flaxres.weights.transfer",
    "summary": "flaxres.models.summary",
    "use_native_convolutions": "flaxres.ops.native",
    "variant": "flaxres.config.files",
}
__all__ = [
    "AugmentConfig",
    "CLIPResNet",
    "Config",
    "ConvNeXt",
    "DataConfig",
    "DenseNet",
    "InputError",
    "LegacySENet",
    "ModelConfig",
    "NFNet",
    "OptimConfig",
    "Pretrained",
    "RegNet",
    "Report",
    "Res2Net",
    "ResNeSt",
    "ResNet",
    "ResNet9",
    "ResNet18",
    "ResNet20",
    "ResNet32",
    "ResNet34",
    "ResNet44",
    "ResNet50",
    "ResNet56",
    "ResNet101",
    "ResNet110",
    "ResNet152",
    "ResNet200",
    "ResNet1202",
    "ResNetV2",
    "SKNet",
    "TrainConfig",
    "compiler_options",
    "create_model",
    "evaluate",
    "fit",
    "list_models",
    "list_pretrained",
    "load_pretrained",
    "load_run",
    "load_weights",
    "pretrained_info",
    "push_to_hub",
    "save_pretrained",
    "save_weights",
    "summary",
    "use_native_convolutions",
    "variant",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:  # Python binds them here itself
        return importlib.import_module(f"flaxres.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'flaxres' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_LAZY[name]), name)
    except ModuleNotFoundError as error:
        if (refusal := missing_extra(error)) is None:
            raise
        raise ImportError(f"flaxres.{name}: {refusal}", name=error.name) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
