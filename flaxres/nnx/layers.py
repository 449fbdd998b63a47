"""Layers, blocks and networks as modules of Flax's NNX, with their parts as attributes.

A layer holds its variables and the layers in it as attributes. Its mathematics is its Linen
module, which `flaxres.nnx._call` runs: nothing of it is written here.
"""

import types
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn, nnx
from jaxtyping import Array, Float

from flaxres.errors import InputError
from flaxres.models import (
    attention,
    blocks,
    channel_norms,
    clip,
    convnext,
    densenet,
    group_norms,
    layers,
    network,
    nfnet,
    regnet,
    res2net,
    resnest,
    resnet,
    resnet9,
    resnetv2,
    senet,
    sknet,
    stage,
    stochastic,
)
from flaxres.models.stage import SCANNED
from flaxres.nnx._call import Call, Randomness, is_defined_by, require_replaceable
from flaxres.nnx._definition import Definition

VARIABLES: dict[str, type[nnx.Variable[Any]]] = {
    "params": nnx.Param,
    "batch_stats": nnx.BatchStat,
}


class Layer(nnx.Module):
    """A layer, block or network whose mathematics is a Linen module.

    Variables (`kernel`, `scale`, `mean`, ...) and the layers in it (`conv1`, `layer1`, ...) are
    attributes, with the names of the Linen module's tree. A layer can be assigned another
    `nnx.Module`, which is then called with the layer's input.

    It starts in training mode, as Flax's own layers do. `train()` and `eval()` set the mode of all
    layers in it; `set_attributes` sets that of some.

    Call: as the Linen module, with the array alone: the other arguments are those of the network's
    call. `rngs` gives the keys of dropout and stochastic depth.

    Attributes:
      use_running_average: of a `BatchNorm`: normalise by the running statistics, and don't update
        them.
      deterministic: of a `Dropout`, and of a block with stochastic depth: drop nothing.

    Raises:
      InputError: as the Linen module; or random numbers are needed and `rngs` is missing; or a
        layer was replaced by something that can't be called.

    Examples:
      >>> import flaxres.nnx
      >>> model = flaxres.nnx.create_model("test_resnet", num_classes=2, rngs=nnx.Rngs(0))
      >>> block = model.layer1[0]
      >>> block.conv1.kernel.shape
      (3, 3, 32, 32)
      >>> nnx.jit(lambda block, x: block(x))(block, jnp.ones((1, 8, 8, 32))).shape
      (1, 8, 8, 32)
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, definition: Definition, variables: Mapping[str, Any]) -> None:
        self._fill(definition, variables)

    def _fill(self, definition: Definition, variables: Mapping[str, Any]) -> None:
        """Makes the variables and the layers of a definition.

        Args:
          definition: the definition of this layer.
          variables: its Linen variables.
        """
        self._definition = definition
        for name, collection in definition.variables.items():
            value = variables[collection][name]
            value = jnp.asarray(value) if isinstance(value, np.ndarray) else value
            setattr(self, name, VARIABLES[collection](value))
        for name, child in definition.children.items():
            parts = {key: tree[name] for key, tree in variables.items() if name in tree}
            setattr(self, name, class_of(child)(child, parts))
        if definition.mode is not None:
            setattr(self, definition.mode.attribute, False)

    @property
    def linen(self) -> nn.Module:
        """The Linen module of this layer, unbound."""
        return self._definition.module

    def __setattr__(self, name: str, value: Any) -> None:
        definition = vars(self).get("_definition")
        child = definition.children.get(name) if definition is not None else None
        if child is not None and name in vars(self) and not is_defined_by(value, child):
            require_replaceable(value, child)
        super().__setattr__(name, value)

    def __call__(self, x: Float[Array, "..."], *, rngs: Randomness | None = None) -> Any:
        definition: Definition = self._definition
        if SCANNED in definition.path:
            raise InputError(
                f"{definition} is part of scanned blocks, which run together: call the stage, or "
                "create the network with scan_blocks=False"
            )
        arguments: tuple[Any, ...] = definition.arguments
        keywords: dict[str, Any] = definition.keywords
        if isinstance(definition.module, layers.BatchNorm):  # alone, without the ReLU that follows
            arguments, keywords = (), {"use_running_average": True}
        return Call(self, definition).run((x, *arguments), keywords, rngs)

    def set_view(
        self, deterministic: bool | None = None, use_running_average: bool | None = None
    ) -> None:
        """Sets the modes that this layer has, for `nnx.view`.

        Args:
          deterministic, use_running_average: new values; None changes nothing.
        """
        modes = {"deterministic": deterministic, "use_running_average": use_running_average}
        for name, value in modes.items():
            if value is not None and hasattr(self, name):
                setattr(self, name, value)


class Indexed(Layer):
    """A layer whose layers have numbers for names: `stage[0]` is its attribute `0`.

    A negative index counts from the last one. `len` and iteration cover all of them.

    Examples:
      >>> import flaxres.nnx
      >>> model = nnx.eval_shape(lambda: flaxres.nnx.ResNet18(rngs=nnx.Rngs(0)))
      >>> len(model.layer1), model.layer1[-1] is model.layer1[1]
      (2, True)
    """

    def _numbers(self) -> list[int]:
        names: dict[str, Definition] = self._definition.children
        return sorted(int(name) for name in names if name.isdigit())

    def _name(self, index: int | str) -> str:
        """Returns the attribute of an index."""
        numbers = self._numbers()
        number = int(index)
        if number < 0 and -number <= len(numbers):
            number = numbers[number]
        if number in numbers:
            return str(number)
        scanned = SCANNED in self._definition.children
        raise IndexError(
            f"{self._definition} has no {index}: choose from {', '.join(map(str, numbers))}"
            + (f"; the other blocks are stacked in .{SCANNED}" if scanned else "")
        )

    def __getitem__(self, index: int | str) -> Any:
        return getattr(self, self._name(index))

    def __setitem__(self, index: int | str, module: nnx.Module) -> None:
        setattr(self, self._name(index), module)

    def __len__(self) -> int:
        return len(self._numbers())

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self, str(number)) for number in self._numbers())


CLASSES: dict[type[nn.Module], type[Layer]] = {}


def _like(linen: type[nn.Module], base: type[Layer] = Layer, name: str = "") -> type[Layer]:
    """Returns the class of the layers that a Linen module defines, and adds it to `CLASSES`."""
    summary = (linen.__doc__ or linen.__name__).strip().splitlines()[0]
    where = f"{linen.__module__}.{linen.__qualname__}"
    content = {
        "__doc__": f"{summary}\n\nThe mathematics is that of `{where}`.",
        "__module__": __name__,
    }
    made: Any = types.new_class(
        name or linen.__name__, (base,), {}, lambda body: body.update(content)
    )
    CLASSES[linen] = made
    return CLASSES[linen]


def class_of(definition: Definition) -> type[Layer]:
    """Returns the class of the layer that a definition describes.

    `nn.remat` derives classes of its own from that of a module.
    """
    return next(CLASSES[kind] for kind in type(definition.module).__mro__ if kind in CLASSES)


Conv = _like(layers.Conv)
BatchNorm = _like(layers.BatchNorm)
GroupNorm = _like(group_norms.GroupNorm)
EvoNorm = _like(group_norms.EvoNorm)
Dropout = _like(stochastic.Dropout)
Linear = _like(nn.Dense, name="Linear")
ChannelConv = _like(nn.Conv, name="ChannelConv")
SqueezeExcite = _like(attention.SqueezeExcite)
EfficientChannelAttention = _like(attention.EfficientChannelAttention)
DeepStem = _like(resnet.DeepStem, Indexed)
PoolingConvolution = _like(resnet.PoolingConvolution, Indexed)
Projection = _like(blocks.Projection, Indexed)
ResidualBlock = _like(blocks.ResidualBlock)
ConvNorm = _like(layers.ConvNorm)
MultiScaleBlock = _like(res2net.MultiScaleBlock)
SplitAttention = _like(resnest.SplitAttention)
SplitAttentionBlock = _like(resnest.SplitAttentionBlock)
PathAttention = _like(sknet.PathAttention)
SelectiveKernel = _like(sknet.SelectiveKernel)
SelectiveKernelBlock = _like(sknet.SelectiveKernelBlock)
RegNetBlock = _like(regnet.RegNetBlock)
PreActivationRegNetBlock = _like(regnet.PreActivationRegNetBlock)
NormFreeStem = _like(nfnet.NormFreeStem)
NormFreeBlock = _like(nfnet.NormFreeBlock)
LegacyStem = _like(senet.LegacyStem)
LegacyBlock = _like(senet.LegacyBlock)
AveragingStem = _like(clip.AveragingStem)
PooledBottleneck = _like(clip.PooledBottleneck)
AttentionPool = _like(clip.AttentionPool)
LayerNorm = _like(channel_norms.LayerNorm)
SimpleNorm = _like(channel_norms.SimpleNorm)
GlobalResponseNorm = _like(channel_norms.GlobalResponseNorm)
Mlp = _like(convnext.Mlp)
ConvNeXtBlock = _like(convnext.ConvNeXtBlock)
Downsampling = _like(convnext.Downsampling, Indexed)
ConvNeXtStage = _like(convnext.ConvNeXtStage)
ConvNeXtStem = _like(convnext.Stem, Indexed, name="ConvNeXtStem")
Head = _like(convnext.Head)
Downsample = _like(blocks.Downsample)
PreActivationBlock = _like(blocks.PreActivationBlock)
Stage = _like(stage.Stage, Indexed)
PooledConvolution = _like(resnet9.PooledConvolution)
Stem = _like(resnetv2.Stem)
Nested = _like(network.Nested)
Stages = _like(network.Stages, Indexed)
DenseLayer = _like(densenet.DenseLayer)
DenseBlock = _like(densenet.DenseBlock)
Transition = _like(densenet.Transition)
Features = _like(densenet.Features)
