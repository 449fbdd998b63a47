"""The networks as modules of Flax's NNX.

Each is made from its Linen module, which stays the one definition of its mathematics.
"""

from flaxres.nnx.conversion import (
    create_model as create_model,
    from_linen as from_linen,
    to_linen as to_linen,
)
from flaxres.nnx.layers import (
    BatchNorm as BatchNorm,
    ChannelConv as ChannelConv,
    Conv as Conv,
    ConvNeXtBlock as ConvNeXtBlock,
    ConvNorm as ConvNorm,
    DenseBlock as DenseBlock,
    DenseLayer as DenseLayer,
    Dropout as Dropout,
    EfficientChannelAttention as EfficientChannelAttention,
    EvoNorm as EvoNorm,
    GlobalResponseNorm as GlobalResponseNorm,
    GroupNorm as GroupNorm,
    Indexed as Indexed,
    Layer as Layer,
    LayerNorm as LayerNorm,
    Linear as Linear,
    MultiScaleBlock as MultiScaleBlock,
    PreActivationBlock as PreActivationBlock,
    Projection as Projection,
    RegNetBlock as RegNetBlock,
    ResidualBlock as ResidualBlock,
    SelectiveKernel as SelectiveKernel,
    SelectiveKernelBlock as SelectiveKernelBlock,
    SplitAttention as SplitAttention,
    SplitAttentionBlock as SplitAttentionBlock,
    SqueezeExcite as SqueezeExcite,
    Stage as Stage,
)
from flaxres.nnx.named import (
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
from flaxres.nnx.network import Network as Network
from flaxres.nnx.networks import (
    CLIPResNet as CLIPResNet,
    ConvNeXt as ConvNeXt,
    DenseNet as DenseNet,
    LegacySENet as LegacySENet,
    NFNet as NFNet,
    RegNet as RegNet,
    Res2Net as Res2Net,
    ResNeSt as ResNeSt,
    ResNet as ResNet,
    ResNet9 as ResNet9,
    ResNetV2 as ResNetV2,
    SKNet as SKNet,
)
from flaxres.nnx.weights import (
    load_pretrained as load_pretrained,
    load_weights as load_weights,
    save_pretrained as save_pretrained,
    save_weights as save_weights,
)
