"""Names of the same layers in other libraries and in authors' code, as timm has them."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Replacement = str | Callable[[re.Match[str]], str]


class Dialect(NamedTuple):
    """The names that a library gives to the layers of a network.

    Attributes:
      sign: matches a name that no other library has.
      rules: patterns and what replaces them, one after the other.
      hwio: kernels have the axes height, width, inputs, outputs.
      part: prefix of the names of the network's layers; others are of another network.
    """

    sign: str
    rules: tuple[tuple[str, Replacement], ...]
    hwio: bool = False
    part: str = ""


DIALECTS = (
    # DenseNets before 2018: `norm.1`.
    Dialect(
        r"denselayer\d+\.norm\.\d\.",
        ((r"(denselayer\d+)\.(norm|relu|conv)\.(\d)\.", r"\1.\2\3."),),
    ),
    # torchvision's RegNets.
    Dialect(
        r"^trunk_output\.",
        (
            (
                r"^trunk_output\.block(\d+)\.block\d+-(\d+)\.",
                lambda match: f"s{match[1]}.b{int(match[2]) + 1}.",
            ),
            (r"\.f\.a\.", ".conv1."),
            (r"\.f\.b\.", ".conv2."),
            (r"\.f\.se\.", ".se."),
            (r"\.f\.c\.", ".conv3."),
            (r"\.proj\.", ".downsample."),
            (r"\.0\.(\w+)$", r".conv.\1"),
            (r"\.1\.(\w+)$", r".bn.\1"),
            (r"^fc\.", "head.fc."),
        ),
    ),
    # torchvision's ConvNeXts: stages and the layers between them alternate.
    Dialect(
        r"^features\.1\.0\.layer_scale$",
        (
            (r"^features\.0\.", "stem."),
            (
                r"^features\.(\d*[13579])\.(\d+)\.",
                lambda match: f"stages.{int(match[1]) // 2}.blocks.{match[2]}.",
            ),
            (
                r"^features\.(\d+)\.",
                lambda match: f"stages.{int(match[1]) // 2}.downsample.",
            ),
            (r"\.block\.0\.", ".conv_dw."),
            (r"\.block\.2\.", ".norm."),
            (r"\.block\.3\.", ".mlp.fc1."),
            (r"\.block\.5\.", ".mlp.fc2."),
            (r"\.layer_scale$", ".gamma"),
            (r"^classifier\.0\.", "head.norm."),
            (r"^classifier\.2\.", "head.fc."),
        ),
    ),
    # The authors' CLIP and open_clip; the text tower is left out.
    Dialect(
        r"^visual\.attnpool\.positional_embedding$",
        (
            (r"^visual\.(conv\d)\.", r"stem.\1.conv."),
            (r"^visual\.bn(\d)\.", r"stem.conv\1.bn."),
            (r"^visual\.layer(\d)\.", lambda match: f"stages.{int(match[1]) - 1}."),
            (r"\.downsample\.0\.", ".shortcut.conv.conv."),
            (r"\.downsample\.1\.", ".shortcut.conv.bn."),
            (r"^(stages\.\d+\.\d+)\.conv([13])\.", r"\1.conv\2_1x1.conv."),
            (r"^(stages\.\d+\.\d+)\.bn([13])\.", r"\1.conv\2_1x1.bn."),
            (r"^(stages\.\d+\.\d+)\.conv2\.", r"\1.conv2_kxk.conv."),
            (r"^(stages\.\d+\.\d+)\.bn2\.", r"\1.conv2_kxk.bn."),
            (r"^visual\.attnpool\.positional_embedding$", "head.pos_embed"),
            (r"^visual\.attnpool\.([qkv])_proj\.", r"head.\1."),
            (r"^visual\.attnpool\.c_proj\.", "head.proj."),
        ),
        part="visual.",
    ),
    # ResNets of Hugging Face's transformers.
    Dialect(
        r"embedder\.embedder\.convolution\.weight$",
        (
            (r"^resnet\.", ""),
            (r"^embedder\.embedder\.convolution\.", "conv1."),
            (r"^embedder\.embedder\.normalization\.", "bn1."),
            (
                r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.",
                lambda match: f"layer{int(match[1]) + 1}.{match[2]}.",
            ),
            (r"\.shortcut\.convolution\.", ".downsample.0."),
            (r"\.shortcut\.normalization\.", ".downsample.1."),
            (
                r"\.layer\.(?:layer\.)?(\d)\.(convolution|normalization)\.",
                lambda match: (
                    f".{'conv' if match[2] == 'convolution' else 'bn'}{int(match[1]) + 1}."
                ),
            ),
            (r"^classifier\.1\.", "fc."),
        ),
    ),
    # The authors' BiT, in .npz files.
    Dialect(
        r"^resnet/root_block/standardized_conv2d/kernel$",
        (
            (r"^resnet/root_block/standardized_conv2d/", "stem.conv."),
            (r"^resnet/group_norm/", "norm."),
            (r"^resnet/head/conv2d/", "head.fc."),
            (
                r"^resnet/block(\d+)/unit(\d+)/",
                lambda match: f"stages.{int(match[1]) - 1}.blocks.{int(match[2]) - 1}.",
            ),
            (r"\.a/proj/standardized_conv2d/", ".downsample.conv."),
            (
                r"\.([abc])/(standardized_conv2d|group_norm)/",
                lambda match: (
                    f".{'conv' if 'conv' in match[2] else 'norm'}{' abc'.index(match[1])}."
                ),
            ),
            (r"\.(kernel|gamma)$", ".weight"),
            (r"\.beta$", ".bias"),
        ),
        hwio=True,
    ),
    # The authors' ConvNeXts, both versions.
    Dialect(
        r"^downsample_layers\.0\.0\.",
        (
            (r"^downsample_layers\.0\.", "stem."),
            (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
            (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"\.dwconv\.", ".conv_dw."),
            (r"\.pwconv(\d)\.", r".mlp.fc\1."),
            (r"\.grn\.gamma$", ".mlp.grn.weight"),
            (r"\.grn\.beta$", ".mlp.grn.bias"),
            (r"^norm\.", "head.norm."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ),
    ),
)
# Arrays by channel that have further axes of one there.
FLAT = (".gamma", ".grn.weight", ".grn.bias")


def renamed(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a state dictionary by timm's names.

    Examples:
      >>> list(renamed({"trunk_output.block1.block1-0.f.a.0.weight": 0}))
      ['s1.b1.conv1.conv.weight']
      >>> list(renamed({"layer1.0.conv1.weight": 0}))
      ['layer1.0.conv1.weight']
    """
    for dialect in DIALECTS:
        if any(re.search(dialect.sign, name) for name in weights):
            return dict(
                _renamed(name, value, dialect)
                for name, value in weights.items()
                if name.startswith(dialect.part)
            )
    return dict(weights)


def _renamed(name: str, value: Any, dialect: Dialect) -> tuple[str, Any]:
    """Returns the name and the array of a leaf as timm has them."""
    for pattern, replacement in dialect.rules:
        name = re.sub(pattern, replacement, name)
    if name.endswith(FLAT):
        value = value.reshape(-1)
    if dialect.hwio and value.ndim == 4:
        value = value.transpose(3, 2, 0, 1)
    return name, value
