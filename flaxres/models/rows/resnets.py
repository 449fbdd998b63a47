"""Rows of ResNets, pre-activation ResNets and DenseNets, and of the networks that timm lacks."""

from functools import partial
from typing import Any

from flaxres.models.densenet import DenseNet
from flaxres.models.pruned import ECA_RESNET_50D, ECA_RESNET_101D
from flaxres.models.resnet import ResNet
from flaxres.models.resnet9 import ResNet9
from flaxres.models.resnetv2 import ResNetV2
from flaxres.models.rows.shapes import (
    BOTTLENECKS,
    D18,
    D26,
    D34,
    D50,
    D101,
    D152,
    D269,
    Row,
    d,
    deep,
    t,
    wide_d,
    widths,
    x4,
    x8,
)

basic = partial(ResNet, block="basic")
basic_v2 = partial(ResNetV2, block="basic", widths=(64, 128, 256, 512))
rs: dict[str, Any] = d | {"stem_convolution": True, "attention": "se", "se_ratio": 0.25}
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
    # Huang et al. 2017, table 1.
    "densenet121": partial(DenseNet, depths=(6, 12, 24, 16)),
    "densenetblur121d": partial(DenseNet, depths=(6, 12, 24, 16), stem="deep", anti_alias="blur"),
    "densenet161": partial(DenseNet, depths=(6, 12, 36, 24), growth=48, stem_width=96),
    "densenet169": partial(DenseNet, depths=(6, 12, 32, 32)),
    "densenet201": partial(DenseNet, depths=(6, 12, 48, 32)),
}
OWN: dict[str, Row] = {
    **{f"resnet{n}_v1": partial(ResNet, depths=BOTTLENECKS[n], v1=True) for n in (50, 101, 152)},
    # CIFAR's: He et al. 2016, both papers; Page 2018.
    **{f"resnet{6 * n + 2}": partial(cifar, depths=(n, n, n)) for n in (3, 5, 7, 9, 18, 200)},
    **{f"resnetv2_{9 * n + 2}": partial(cifar_v2, depths=(n, n, n)) for n in (18, 111)},
    "resnet9": partial(ResNet9),
}
