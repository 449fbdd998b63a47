"""The networks as modules of Flax's NNX."""

from flaxres.models import (
    clip,
    convnext,
    densenet,
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
)
from flaxres.nnx.layers import CLASSES
from flaxres.nnx.network import Network


class ResNet(Network):
    """`flaxres.ResNet` as a module of Flax's NNX.

    Attributes, arguments and the call are those of `flaxres.nnx.network.Network`.

    Examples:
      >>> import flaxres.nnx
      >>> from flax import nnx
      >>> model = nnx.eval_shape(lambda: flaxres.nnx.ResNet(num_classes=10, rngs=nnx.Rngs(0)))
      >>> model.fc.bias.shape
      (10,)
    """

    of = resnet.ResNet


class ResNetV2(Network):
    """`flaxres.ResNetV2` as a module of Flax's NNX.

    Attributes, arguments and the call are those of `flaxres.nnx.network.Network`.

    Examples:
      >>> import flaxres.nnx
      >>> from flax import nnx
      >>> model = nnx.eval_shape(lambda: flaxres.nnx.ResNetV2(rngs=nnx.Rngs(0)))
      >>> model.stages[0].blocks[0].conv1.kernel.shape
      (1, 1, 64, 64)
    """

    of = resnetv2.ResNetV2


class ResNet9(Network):
    """`flaxres.ResNet9` as a module of Flax's NNX.

    Attributes, arguments and the call are those of `flaxres.nnx.network.Network`.

    Examples:
      >>> import flaxres.nnx
      >>> from flax import nnx
      >>> model = nnx.eval_shape(lambda: flaxres.nnx.ResNet9(rngs=nnx.Rngs(0)))
      >>> model.layer1[0].conv1.kernel.shape
      (3, 3, 64, 128)
    """

    of = resnet9.ResNet9


class DenseNet(Network):
    """`flaxres.DenseNet` as a module of Flax's NNX.

    Attributes, arguments and the call are those of `flaxres.nnx.network.Network`.

    Examples:
      >>> import flaxres.nnx
      >>> from flax import nnx
      >>> model = nnx.eval_shape(lambda: flaxres.nnx.DenseNet(depths=(1, 1), rngs=nnx.Rngs(0)))
      >>> model.features.denseblock1.denselayer1.conv2.kernel.shape
      (3, 3, 128, 32)
    """

    of = densenet.DenseNet


class Res2Net(Network):
    """`flaxres.Res2Net` as a module of Flax's NNX.

    Attributes, arguments and the call are those of `flaxres.nnx.network.Network`.

    Examples:
      >>> import flaxres.nnx
      >>> from flax import nnx
      >>> model = nnx.eval_shape(lambda: flaxres.nnx.Res2Net(base_width=26, rngs=nnx.Rngs(0)))
      >>> model.layer1[0].convs_0.kernel.shape
      (3, 3, 26, 26)
    """

    of = res2net.Res2Net


class ResNeSt(Network):
    """`flaxres.ResNeSt` as a module of Flax's NNX.

    Attributes, arguments and the call are those of `flaxres.nnx.network.Network`.

    Examples:
      >>> import flaxres.nnx
      >>> from flax import nnx
      >>> model = nnx.eval_shape(lambda: flaxres.nnx.ResNeSt(rngs=nnx.Rngs(0)))
      >>> model.layer1[0].conv2.fc1.kernel.shape
      (1, 1, 64, 32)
    """

    of = resnest.ResNeSt


class SKNet(Network):
    """`flaxres.SKNet` as a module of Flax's NNX.

    Attributes, arguments and the call are those of `flaxres.nnx.network.Network`.

    Examples:
      >>> import flaxres.nnx
      >>> from flax import nnx
      >>> model = nnx.eval_shape(lambda: flaxres.nnx.SKNet(rngs=nnx.Rngs(0)))
      >>> model.layer1[0].conv2.paths_0.conv.kernel.shape
      (3, 3, 32, 64)
    """

    of = sknet.SKNet


class RegNet(Network):
    """`flaxres.RegNet` as a module of Flax's NNX.

    Attributes, arguments and the call are those of `flaxres.nnx.network.Network`.

    Examples:
      >>> import flaxres.nnx
      >>> from flax import nnx
      >>> model = nnx.eval_shape(lambda: flaxres.nnx.RegNet(rngs=nnx.Rngs(0)))
      >>> model.s1[0].conv2.conv.kernel.shape
      (3, 3, 8, 24)
    """

    of = regnet.RegNet


class ConvNeXt(Network):
    """`flaxres.ConvNeXt` as a module of Flax's NNX.

    Attributes, arguments and the call are those of `flaxres.nnx.network.Network`.

    Examples:
      >>> import flaxres.nnx
      >>> from flax import nnx
      >>> model = nnx.eval_shape(lambda: flaxres.nnx.ConvNeXt(rngs=nnx.Rngs(0)))
      >>> model.stages[0].blocks[0].mlp.fc1.kernel.shape
      (96, 384)
    """

    of = convnext.ConvNeXt


class NFNet(Network):
    """`flaxres.NFNet` as a module of Flax's NNX.

    Attributes, arguments and the call are those of `flaxres.nnx.network.Network`.

    Examples:
      >>> import flaxres.nnx
      >>> from flax import nnx
      >>> model = nnx.eval_shape(lambda: flaxres.nnx.NFNet(rngs=nnx.Rngs(0)))
      >>> model.stages[0][0].conv2b.gain.shape
      (128,)
    """

    of = nfnet.NFNet


class CLIPResNet(Network):
    """`flaxres.CLIPResNet` as a module of Flax's NNX.

    Attributes, arguments and the call are those of `flaxres.nnx.network.Network`.

    Examples:
      >>> import flaxres.nnx
      >>> from flax import nnx
      >>> model = nnx.eval_shape(lambda: flaxres.nnx.CLIPResNet(rngs=nnx.Rngs(0)))
      >>> model.head.pos_embed.shape
      (50, 2048)
    """

    of = clip.CLIPResNet


class LegacySENet(Network):
    """`flaxres.LegacySENet` as a module of Flax's NNX.

    Attributes, arguments and the call are those of `flaxres.nnx.network.Network`.

    Examples:
      >>> import flaxres.nnx
      >>> from flax import nnx
      >>> model = nnx.eval_shape(lambda: flaxres.nnx.LegacySENet(rngs=nnx.Rngs(0)))
      >>> model.layer1[0].se_module.fc1.kernel.shape
      (1, 1, 256, 16)
    """

    of = senet.LegacySENet


MADE: tuple[type[Network], ...] = (
    *(ResNet, ResNetV2, ResNet9, DenseNet, Res2Net, ResNeSt, SKNet),
    *(RegNet, ConvNeXt, NFNet, CLIPResNet, LegacySENet),
)
NETWORKS: dict[type[network.Network], type[Network]] = {made.of: made for made in MADE}
for _linen, _network in NETWORKS.items():
    CLASSES[_linen] = _network
