"""Rows of networks whose blocks differ from a ResNet's in one thing."""

from functools import partial
from typing import Any

from flaxres.models.attention import rounded
from flaxres.models.clip import CLIPResNet
from flaxres.models.nfnet import NFNet
from flaxres.models.res2net import Res2Net
from flaxres.models.resnest import ResNeSt
from flaxres.models.rows.shapes import (
    D18,
    D26,
    D34,
    D50,
    D101,
    D152,
    D200,
    D269,
    Row,
    d,
    wide_d,
    widths,
    x4,
)
from flaxres.models.senet import LegacySENet
from flaxres.models.sknet import SKNet

sk: dict[str, Any] = {"block": "basic", "kernel_ratio": 1 / 8, "kernel_divisor": 16}
caffe = partial(LegacySENet, v1=True)

# Blocks of the smallest NFNet; each larger one has as many more (Brock et al. 2021,
# "High-performance ...", table 1).
F0 = (1, 2, 6, 3)
F = {size: tuple((size + 1) * depth for depth in F0) for size in range(8)}
authors: dict[str, Any] = {"skip_gain": True, "gain_in_activation": True, "same_padding": True}
light: dict[str, Any] = {"group_width": 64, "expansion": 0.25, "activation": "silu"}
nf_resnet = partial(
    NFNet,
    widths=widths(256),
    stem="standard",
    stem_width=64,
    group_width=None,
    expansion=0.25,
    second_convolution=False,
    attention=None,
    activation="relu",
    last_width=0,
)
NF_REGNETS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "b0": ((1, 3, 6, 6), (48, 104, 208, 440)),
    "b1": ((2, 4, 7, 7), (48, 104, 208, 440)),
    "b2": ((2, 4, 8, 8), (56, 112, 232, 488)),
    "b3": ((2, 5, 9, 9), (56, 128, 248, 528)),
    "b4": ((2, 6, 11, 11), (64, 144, 288, 616)),
    "b5": ((3, 7, 14, 14), (80, 168, 336, 704)),
}


def nf_regnet(depths: tuple[int, ...], channels: tuple[int, ...]) -> Row:
    """Returns the row of an NF-RegNet: three quarters of these channels, in multiples of 8."""
    last = 1280 * channels[-1] // 440
    *scaled, last_width = (rounded(0.75 * width, share=0.9) for width in (*channels, last))
    return partial(
        NFNet,
        depths=depths,
        widths=tuple(scaled),
        stem="single",
        stem_width=scaled[0],
        group_width=8,
        expansion=2.25,
        inverted=True,
        second_convolution=False,
        activation="silu",
        last_width=last_width,
    )


# Depths, multiple of the widths, side of the images and coordinates of the embedding (Radford et
# al. 2021, table 19).
CLIPS: dict[str, tuple[tuple[int, ...], float, int, int]] = {
    "resnet50": (D50, 1, 224, 1024),
    "resnet101": (D101, 1, 224, 512),
    "resnet50x4": ((4, 6, 10, 6), 1.25, 288, 640),
    "resnet50x16": ((6, 8, 18, 8), 1.5, 384, 768),
    "resnet50x64": ((3, 15, 36, 10), 2, 448, 1024),
}


def clip(depths: tuple[int, ...], factor: float, side: int, embedding: int) -> Row:
    """Returns the row of an image tower."""
    return partial(
        CLIPResNet,
        depths=depths,
        widths=tuple(round(width * factor) for width in widths(256)),
        stem_width=round(32 * factor),
        image_size=side,
        num_classes=embedding,
    )


ROWS: dict[str, Row] = {
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
    # Hu et al. 2018, in the form of the authors' weights.
    "legacy_seresnet18": partial(LegacySENet, depths=D18, block="basic"),
    "legacy_seresnet34": partial(LegacySENet, depths=D34, block="basic"),
    "legacy_seresnet50": partial(caffe, depths=D50),
    "legacy_seresnet101": partial(caffe, depths=D101),
    "legacy_seresnet152": partial(caffe, depths=D152),
    **{
        f"legacy_seresnext{n}_32x4d": partial(LegacySENet, depths=depths, **x4)
        for n, depths in ((26, D26), (50, D50), (101, D101))
    },
    "legacy_senet154": partial(
        LegacySENet,
        depths=D152,
        stem="deep",
        cardinality=64,
        base_width=4,
        reduction=2,
        shortcut_size=3,
    ),
    # Brock et al. 2021, both papers; timm for the light ones and for ECA.
    **{f"dm_nfnet_f{n}": partial(NFNet, depths=F[n], **authors) for n in range(7)},
    **{f"nfnet_f{n}": partial(NFNet, depths=F[n]) for n in range(8)},
    "nfnet_l0": partial(NFNet, depths=F0, se_ratio=0.25, last_width=2304, **light),
    "eca_nfnet_l0": partial(NFNet, depths=F0, attention="eca", last_width=2304, **light),
    **{f"eca_nfnet_l{n}": partial(NFNet, depths=F[n], attention="eca", **light) for n in (1, 2, 3)},
    **{f"nf_regnet_{name}": nf_regnet(*row) for name, row in NF_REGNETS.items()},
    **{
        f"nf_{attention or ''}resnet{n}": partial(
            nf_resnet, depths=depths, attention=attention, se_ratio=1 / 16
        )
        for attention in (None, "se", "eca")
        for n, depths in ((26, D26), (50, D50), (101, D101))
    },
    # timm's, for tests.
    "test_nfnet": partial(
        NFNet,
        depths=(1, 1, 1, 1),
        widths=(32, 64, 96, 128),
        group_width=8,
        expansion=0.25,
        se_ratio=0.25,
        activation="silu",
        last_width=192,
    ),
    # Radford et al. 2021, with the pooling by attention and without.
    **{f"{name}_clip": clip(*row) for name, row in CLIPS.items()},
    **{
        f"{name}_clip_gap": partial(clip(*row), attention_pool=False, num_classes=0)
        for name, row in CLIPS.items()
    },
}
