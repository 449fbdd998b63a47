"""Settings of the network."""

import dataclasses
from typing import Literal

import jax

from flaxres.config import _rules as rules
from flaxres.config._rules import optional, setting
from flaxres.models.registry import MODELS


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Settings of the network.

    Examples:
      >>> ModelConfig(name="resnet18", dtype="bfloat16").name
      'resnet18'
    """

    name: str = setting("resnet50", choices=MODELS)
    """A name of `flaxres.list_models()`."""
    stem: Literal["standard", "small"] | None = setting(None)
    """'small' is a 3x3 convolution without pooling, for small images; None
    keeps the model's own. A network without the choice refuses it."""
    depths: tuple[int, ...] | None = setting(None, rules.SOME_POSITIVE)
    """Blocks of each stage; None keeps the model's own."""
    widths: tuple[int, ...] | None = setting(None, rules.SOME_POSITIVE)
    """Width of each stage; None keeps the model's own."""
    stem_width: int | None = setting(None, optional(rules.POSITIVE))
    """Output channels of the first convolution; None keeps the model's
    own."""
    stem_init: Literal["random", "whitening"] = setting("random")
    """'whitening' initialises the first convolution with the principal
    directions of training images, each divided by its standard
    deviation (Jordan 2024)."""
    shortcut: Literal["projection", "average", "zero_pad", "none"] | None = setting(None)
    """Shortcut where the shape changes; None keeps the model's own. 'none'
    removes all shortcuts: a plain network (He et al. 2016, section
    3.3)."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = setting(None)
    """Dtype of the computation; None is bfloat16 on accelerators and
    float32 on CPUs. float16 scales the loss; float64 needs
    JAX_ENABLE_X64=1."""
    param_dtype: Literal["float32", "float64"] = setting("float32")
    """Dtype of the parameters, the optimizer's state and the updates."""
    bn_group: int | None = setting(None, optional(rules.POSITIVE))
    """Number of images that share batch statistics; None is the whole
    global batch."""
    bn_momentum: float = setting(0.9, rules.BELOW_ONE)
    """Momentum of the running statistics (PyTorch's momentum is one minus
    this)."""
    dropout: float = setting(0.0, rules.BELOW_ONE)
    """Dropout rate before the head."""
    stochastic_depth: float = setting(0.0, rules.BELOW_ONE)
    """Stochastic depth rate of the last block; rates grow linearly from 0
    at the first block (Huang et al. 2016)."""
    scan_blocks: bool = setting(False)
    """Compile the equal blocks of a stage once, under a scan; for very
    deep networks."""
    remat: bool = setting(False)
    """Recompute the activations of each block in the backward pass: less
    memory, more time."""
    anti_alias: Literal["blur", "average"] | None = setting(None)
    """'blur' replaces strides by BlurPool (Zhang 2019); None keeps the
    model's own."""
    head_bias: float = setting(0.0)
    """Initial bias of the head; minus the logarithm of the number of
    classes suits `optim.loss='binary'`."""
    weights: str | None = setting(None)
    """File of weights to start from, any that `flaxres convert` reads; a
    head with another number of classes is re-initialised."""

    @property
    def compute_dtype(self) -> str:
        """Dtype of the computation on this machine's default backend."""
        return self.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
