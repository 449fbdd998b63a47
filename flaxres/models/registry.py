"""The table of model names: timm's, and the papers' names for CIFAR.

A row is a network class with some attributes bound.
"""

import fnmatch
import functools
import inspect
import re
from typing import Any

from flaxres.errors import InputError, unknown
from flaxres.models.convnext import ConvNeXt
from flaxres.models.densenet import DenseNet
from flaxres.models.network import Network
from flaxres.models.pruned import ECA_RESNET_50D, ECA_RESNET_101D
from flaxres.models.regnet import RegNet, design
from flaxres.models.res2net import Res2Net
from flaxres.models.resnest import ResNeSt
from flaxres.models.resnet import ResNet
from flaxres.models.resnet9 import ResNet9
from flaxres.models.resnetv2 import ResNetV2
from flaxres.models.sknet import SKNet

Row = functools.partial[Any]
partial = functools.partial


def widths(first: int) -> tuple[int, ...]:
    """Returns four widths, each twice the one before."""
    return tuple(first * 2**i for i in range(4))


# Blocks of each stage: He et al. 2016, table 1; "Identity mappings", section 5, for 200; Bello et
# al. 2021, table 11, for 270 to 420.
D18 = D26 = (2, 2, 2, 2)
D34 = D50 = (3, 4, 6, 3)
D101, D152, D200 = (3, 4, 23, 3), (3, 8, 36, 3), (3, 24, 36, 3)
D269 = (3, 30, 48, 8)
BOTTLENECKS = {26: D26, 50: D50, 101: D101, 152: D152, 200: D200}

basic = partial(ResNet, block="basic")
basic_v2 = partial(ResNetV2, block="basic", widths=(64, 128, 256, 512))
deep: dict[str, Any] = {"stem": "deep", "stem_width": 32}
tiered: dict[str, Any] = {"stem": "deep_tiered", "stem_width": 32}
d: dict[str, Any] = deep | {"shortcut": "average"}
t: dict[str, Any] = tiered | {"shortcut": "average"}
rs: dict[str, Any] = d | {"stem_convolution": True, "attention": "se", "se_ratio": 0.25}
x4: dict[str, Any] = {"cardinality": 32, "base_width": 4}
x8: dict[str, Any] = {"cardinality": 32, "base_width": 8}
wide_d: dict[str, Any] = d | {"stem_width": 64}
sk: dict[str, Any] = {"block": "basic", "kernel_ratio": 1 / 8, "kernel_divisor": 16}
bit: dict[str, Any] = {"stem": "fixed", "norm_kind": "group", "standardise": 1e-8}

# He et al. 2016, section 4.2: 6n + 2 layers, n blocks in each stage, option A shortcuts. The head's
# name is that of akamaster's weights.
cifar = partial(
    ResNet,
    block="basic",
    widths=(16, 32, 64),
    stem="small",
    stem_width=16,
    shortcut="zero_pad",
    num_classes=10,
    head_name="linear",
)
# "Identity mappings", section 3: 9n + 2 layers.
cifar_v2 = partial(ResNetV2, widths=(64, 128, 256), stem="small", stem_width=16, num_classes=10)

# Depth, initial width, slope, factor and group width, see `design`.
REGNETS_X: dict[str, tuple[Any, ...]] = {
    "002": (13, 24, 36.44, 2.49, 8),
    "004": (22, 24, 24.48, 2.54, 16),
    "004_tv": (22, 24, 24.48, 2.54, 16, 0.9),
    "006": (16, 48, 36.97, 2.24, 24),
    "008": (16, 56, 35.73, 2.28, 16),
    "016": (18, 80, 34.01, 2.25, 24),
    "032": (25, 88, 26.31, 2.25, 48),
    "040": (23, 96, 38.65, 2.43, 40),
    "064": (17, 184, 60.83, 2.07, 56),
    "080": (23, 80, 49.56, 2.88, 120),
    "120": (19, 168, 73.36, 2.37, 112),
    "160": (22, 216, 55.59, 2.1, 128),
    "320": (23, 320, 69.86, 2.0, 168),
}
REGNETS_Y: dict[str, tuple[Any, ...]] = {
    "002": (13, 24, 36.44, 2.49, 8),
    "004": (16, 48, 27.89, 2.09, 8),
    "006": (15, 48, 32.54, 2.32, 16),
    "008": (14, 56, 38.84, 2.4, 16),
    "008_tv": (14, 56, 38.84, 2.4, 16, 0.9),
    "016": (27, 48, 20.71, 2.65, 24),
    "032": (21, 80, 42.63, 2.66, 24),
    "040": (22, 96, 31.41, 2.24, 64),
    "064": (25, 112, 33.22, 2.27, 72),
    "080": (17, 192, 76.82, 2.19, 56),
    "080_tv": (17, 192, 76.82, 2.19, 56, 0.9),
    "120": (19, 168, 73.36, 2.37, 112),
    "160": (18, 200, 106.23, 2.48, 112),
    "320": (20, 232, 115.89, 2.53, 232),
    "640": (20, 352, 147.48, 2.4, 328),
    "1280": (27, 456, 160.83, 2.52, 264),
    "2560": (27, 640, 230.83, 2.53, 373),
}

# Depths and the first width, see `widths`.
CONVNEXTS: tuple[tuple[str, tuple[int, ...], int], ...] = (
    ("tiny", (3, 3, 9, 3), 96),
    *((name, (3, 3, 27, 3), first) for name, first in (("small", 96), ("base", 128))),
    *((name, (3, 3, 27, 3), first) for name, first in (("large", 192), ("xlarge", 256))),
)
SMALL_CONVNEXTS: tuple[tuple[str, tuple[int, ...], int], ...] = (
    *((name, (2, 2, 6, 2), first) for name, first in (("atto", 40), ("femto", 48), ("pico", 64))),
    ("nano", (2, 2, 8, 2), 80),
)
v2: dict[str, Any] = {"layer_scale": None, "response_norm": True}

# Names that timm has too, with timm's meaning.
TIMM: dict[str, Row] = {
    "resnet18": partial(basic, depths=D18),
    "resnet34": partial(basic, depths=D34),
    **{f"resnet{n}": partial(ResNet, depths=depths) for n, depths in BOTTLENECKS.items()},
    # ResNet-C, -D, -S and -T stems (He et al. 2019, section 4; timm).
    "resnet10t": partial(basic, depths=(1, 1, 1, 1), **t),
    "resnet14t": partial(ResNet, depths=(1, 1, 1, 1), **t),
    "resnet26t": partial(ResNet, depths=D26, **t),
    "resnet50t": partial(ResNet, depths=D50, **t),
    "resnet18d": partial(basic, depths=D18, **d),
    "resnet34d": partial(basic, depths=D34, **d),
    **{f"resnet{n}d": partial(ResNet, depths=depths, **d) for n, depths in BOTTLENECKS.items()},
    **{f"resnet{n}c": partial(ResNet, depths=BOTTLENECKS[n], **deep) for n in (50, 101, 152)},
    **{f"resnet{n}s": partial(ResNet, depths=BOTTLENECKS[n], stem="deep") for n in (50, 101, 152)},
    "resnet50_gn": partial(ResNet, depths=D50, norm_kind="group"),
    # Zagoruyko & Komodakis 2016; Xie et al. 2017, table 1.
    "wide_resnet50_2": partial(ResNet, depths=D50, base_width=128),
    "wide_resnet101_2": partial(ResNet, depths=D101, base_width=128),
    "resnext50_32x4d": partial(ResNet, depths=D50, **x4),
    "resnext50d_32x4d": partial(ResNet, depths=D50, **x4, **d),
    **{
        f"resnext101_32x{width}d": partial(ResNet, depths=D101, cardinality=32, base_width=width)
        for width in (4, 8, 16, 32)
    },
    "resnext101_64x4d": partial(ResNet, depths=D101, cardinality=64, base_width=4),
    # Hu et al. 2018; Wang et al. 2020; Bello et al. 2021.
    "seresnet18": partial(basic, depths=D18, attention="se"),
    "seresnet34": partial(basic, depths=D34, attention="se"),
    **{
        f"seresnet{n}": partial(ResNet, depths=BOTTLENECKS[n], attention="se")
        for n in (50, 101, 152)
    },
    "seresnet152d": partial(ResNet, depths=D152, attention="se", **d),
    "seresnext26d_32x4d": partial(ResNet, depths=D26, attention="se", **x4, **d),
    "seresnext26t_32x4d": partial(ResNet, depths=D26, attention="se", **x4, **t),
    "seresnext50_32x4d": partial(ResNet, depths=D50, attention="se", **x4),
    "seresnext101_32x4d": partial(ResNet, depths=D101, attention="se", **x4),
    "seresnext101_32x8d": partial(ResNet, depths=D101, attention="se", **x8),
    "seresnext101d_32x8d": partial(ResNet, depths=D101, attention="se", **x8, **d),
    "seresnext101_64x4d": partial(
        ResNet, depths=D101, attention="se", cardinality=64, base_width=4
    ),
    "senet154": partial(
        ResNet,
        depths=D152,
        stem="deep",
        attention="se",
        cardinality=64,
        base_width=4,
        reduction=2,
        shortcut_size=3,
    ),
    "ecaresnetlight": partial(
        ResNet, depths=(1, 1, 11, 3), attention="eca", shortcut="average", stem_width=64
    ),
    "ecaresnet26t": partial(ResNet, depths=D26, attention="eca", **t),
    "ecaresnet101d": partial(ResNet, depths=D101, attention="eca", **d),
    "ecaresnet269d": partial(ResNet, depths=D269, attention="eca", **d),
    "ecaresnet50d_pruned": partial(ResNet, depths=D50, attention="eca", pruned=ECA_RESNET_50D, **d),
    "ecaresnet101d_pruned": partial(
        ResNet, depths=D101, attention="eca", pruned=ECA_RESNET_101D, **d
    ),
    "ecaresnet50d": partial(ResNet, depths=D50, attention="eca", **d),
    "ecaresnet50t": partial(ResNet, depths=D50, attention="eca", **t),
    **{f"resnetrs{n}": partial(ResNet, depths=BOTTLENECKS[n], **rs) for n in (50, 101, 152, 200)},
    "resnetrs270": partial(ResNet, depths=(4, 29, 53, 4), **rs),
    "resnetrs350": partial(ResNet, depths=(4, 36, 72, 4), **rs),
    "resnetrs420": partial(ResNet, depths=(4, 44, 87, 4), **rs),
    # Zhang 2019.
    "resnetblur50": partial(ResNet, depths=D50, anti_alias="blur"),
    "resnetaa50": partial(ResNet, depths=D50, anti_alias="average"),
    "resnetaa50d": partial(ResNet, depths=D50, anti_alias="average", **d),
    "resnetaa101d": partial(ResNet, depths=D101, anti_alias="average", **d),
    "seresnextaa101d_32x8d": partial(
        ResNet, depths=D101, attention="se", anti_alias="average", **x8, **d
    ),
    "seresnextaa201d_32x8d": partial(
        ResNet,
        depths=(3, 24, 36, 4),
        attention="se",
        anti_alias="average",
        **x8,
        **wide_d,
    ),
    # timm's, for tests: about half a million parameters.
    "test_resnet": partial(
        ResNet,
        depths=(1, 1, 1, 1),
        block=("basic", "basic", "bottleneck", "basic"),
        widths=(32, 48, 48, 96),
        **d | {"stem_width": 16},
    ),
    # He et al. 2016, "Identity mappings"; Kolesnikov et al. 2020.
    **{f"resnetv2_{n}": partial(basic_v2, depths=depths) for n, depths in ((18, D18), (34, D34))},
    **{
        f"resnetv2_{n}d": partial(basic_v2, depths=depths, stem="deep", averaged=True)
        for n, depths in ((18, D18), (34, D34))
    },
    **{f"resnetv2_{n}": partial(ResNetV2, depths=BOTTLENECKS[n]) for n in (50, 101, 152)},
    **{
        f"resnetv2_{n}d": partial(ResNetV2, depths=BOTTLENECKS[n], stem="deep", averaged=True)
        for n in (50, 101, 152)
    },
    **{
        f"resnetv2_{n}x{factor}_bit": partial(
            ResNetV2,
            depths=BOTTLENECKS[n],
            widths=widths(256 * factor),
            stem_width=64 * factor,
            **bit,
        )
        for n, factor in ((50, 1), (50, 3), (101, 1), (101, 3), (152, 2), (152, 4))
    },
    # Wu & He 2018; Liu et al. 2020.
    **{
        f"resnetv2_50d_{name}": partial(
            ResNetV2, depths=D50, stem="deep", averaged=True, norm_kind=kind
        )
        for name, kind in (("gn", "group"), ("evos", "evo"))
    },
    # Gao et al. 2019, tables 1 and 2.
    **{
        f"res2net50_{width}w_{scale}s": partial(Res2Net, depths=D50, base_width=width, scale=scale)
        for width, scale in ((26, 4), (48, 2), (14, 8), (26, 6), (26, 8))
    },
    "res2net101_26w_4s": partial(Res2Net, depths=D101, base_width=26),
    "res2net50d": partial(Res2Net, depths=D50, base_width=26, **d),
    "res2net101d": partial(Res2Net, depths=D101, base_width=26, **d),
    "res2next50": partial(Res2Net, depths=D50, base_width=4, cardinality=8),
    # Zhang et al. 2020, table 1 and appendix.
    "resnest14d": partial(ResNeSt, depths=(1, 1, 1, 1), **d),
    "resnest26d": partial(ResNeSt, depths=D26, **d),
    "resnest50d": partial(ResNeSt, depths=D50, **d),
    "resnest101e": partial(ResNeSt, depths=D101, **wide_d),
    "resnest200e": partial(ResNeSt, depths=D200, **wide_d),
    "resnest269e": partial(ResNeSt, depths=D269, **wide_d),
    "resnest50d_4s2x40d": partial(
        ResNeSt, depths=D50, radix=4, cardinality=2, base_width=40, average_first=True, **d
    ),
    "resnest50d_1s4x24d": partial(
        ResNeSt, depths=D50, radix=1, cardinality=4, base_width=24, average_first=True, **d
    ),
    # Li et al. 2019, table 1; all but the last with split inputs, which are timm's.
    "skresnet18": partial(SKNet, depths=D18, **sk),
    "skresnet34": partial(SKNet, depths=D34, **sk),
    "skresnet50": partial(SKNet, depths=D50),
    "skresnet50d": partial(SKNet, depths=D50, **d),
    "skresnext50_32x4d": partial(SKNet, depths=D50, kernel_divisor=32, split=False, **x4),
    # Radosavovic et al. 2020, appendix; Goyal et al. 2021 for 640 and more; torchvision for `tv`.
    **{f"regnetx_{name}": partial(RegNet, **design(*point)) for name, point in REGNETS_X.items()},
    **{
        f"regnety_{name}": partial(RegNet, se_ratio=0.25, **design(*point))
        for name, point in REGNETS_Y.items()
    },
    # Liu et al. 2022, section 3; Woo et al. 2023, table 9; timm for the others.
    **{
        f"convnext_{name}": partial(ConvNeXt, depths=depths, widths=widths(first))
        for name, depths, first in CONVNEXTS
    },
    **{
        f"convnext_{name}": partial(
            ConvNeXt, depths=depths, widths=widths(first), convolutions=True
        )
        for name, depths, first in SMALL_CONVNEXTS
    },
    **{
        f"convnext_{name}_ols": partial(
            ConvNeXt,
            depths=depths,
            widths=widths(first),
            convolutions=True,
            stem="overlap" if name == "nano" else "overlap_tiered",
        )
        for name, depths, first in SMALL_CONVNEXTS
    },
    "convnext_tiny_hnf": partial(ConvNeXt, convolutions=True, norm_first=True),
    "convnext_large_mlp": partial(ConvNeXt, depths=(3, 3, 27, 3), widths=widths(192), hidden=1536),
    "convnext_xxlarge": partial(ConvNeXt, depths=(3, 4, 30, 3), widths=widths(384), epsilon=1e-5),
    **{
        f"convnextv2_{name}": partial(
            ConvNeXt, depths=depths, widths=widths(first), **v2, convolutions=small
        )
        for rows, small in ((SMALL_CONVNEXTS, True), (CONVNEXTS, False))
        for name, depths, first in rows
        if name != "xlarge"
    },
    "convnextv2_huge": partial(ConvNeXt, depths=(3, 3, 27, 3), widths=widths(352), **v2),
    # Huang et al. 2017, table 1.
    "densenet121": partial(DenseNet, depths=(6, 12, 24, 16)),
    "densenetblur121d": partial(DenseNet, depths=(6, 12, 24, 16), stem="deep", anti_alias="blur"),
    "densenet161": partial(DenseNet, depths=(6, 12, 36, 24), growth=48, stem_width=96),
    "densenet169": partial(DenseNet, depths=(6, 12, 32, 32)),
    "densenet201": partial(DenseNet, depths=(6, 12, 48, 32)),
}
# Names that timm lacks.
OWN: dict[str, Row] = {
    **{f"resnet{n}_v1": partial(ResNet, depths=BOTTLENECKS[n], v1=True) for n in (50, 101, 152)},
    # CIFAR's: He et al. 2016, both papers; Page 2018.
    **{f"resnet{6 * n + 2}": partial(cifar, depths=(n, n, n)) for n in (3, 5, 7, 9, 18, 200)},
    **{f"resnetv2_{9 * n + 2}": partial(cifar_v2, depths=(n, n, n)) for n in (18, 111)},
    "resnet9": partial(ResNet9),
}
MODELS: dict[str, Row] = TIMM | OWN


def natural(name: str) -> list[int | str]:
    """Returns the key that sorts names in natural order.

    Examples:
      >>> sorted(["resnet101", "resnet50"], key=natural)
      ['resnet50', 'resnet101']
    """
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names that match a shell pattern, in natural order (resnet50 before resnet101).

    Examples:
      >>> import flaxres
      >>> flaxres.list_models("resnet*c")
      ['resnet50c', 'resnet101c', 'resnet152c']
    """
    return sorted(fnmatch.filter(MODELS, pattern), key=natural)


def create_model(name: str, **attributes: Any) -> Network:
    """Creates the network called `name` with some attributes of its class changed.

    Args:
      name: a name from `list_models`.
      **attributes: fields of the class, e.g. `num_classes`.

    Raises:
      InputError: the name or an attribute is unknown; the message names the nearest ones.

    Examples:
      >>> import flaxres
      >>> flaxres.create_model("resnet50", num_classes=10).depths
      (3, 4, 6, 3)
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    fields = set(inspect.signature(MODELS[name].func).parameters) - {"parent", "name"}
    for attribute in attributes:
        if attribute not in fields:
            raise unknown(f"attribute of {name}", attribute, fields)
    network: Network
    try:
        network = MODELS[name](**attributes)
    except TypeError as error:
        raise InputError(f"{name}: {error}") from error
    return network


def small_images(name: str) -> bool:
    """Returns whether a model is made for CIFAR-10: 32 pixels and ten classes by default."""
    return create_model(name).for_small_images
