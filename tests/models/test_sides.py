"""The sides of images that networks take."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import flaxres
from flaxres.errors import InputError
from flaxres.models.network import Network

SMALL: dict[str, Any] = {"depths": (1, 1, 1, 1), "widths": (8, 8, 8, 8), "num_classes": 2}
BASIC = functools.partial(flaxres.ResNet, **SMALL, block="basic", stem_width=8)
BOTTLENECK = functools.partial(flaxres.ResNet, **SMALL, stem_width=8)
NETWORKS: dict[str, Network] = {
    "standard": BASIC(),
    "small": BASIC(stem="small", shortcut="zero_pad"),
    "deep": BOTTLENECK(stem="deep", shortcut="average"),
    "convolution": BOTTLENECK(stem="deep", stem_convolution=True, shortcut="average"),
    "average": BOTTLENECK(anti_alias="average"),
    "average-dilated": BOTTLENECK(anti_alias="average", output_stride=16),
    "blur": BASIC(anti_alias="blur"),
    "blur-dilated": BOTTLENECK(anti_alias="blur", output_stride=8),
    "v2": flaxres.ResNetV2(**SMALL | {"widths": (32,) * 4}, stem_width=8, averaged=True),
    "v2-fixed": flaxres.ResNetV2(**SMALL | {"widths": (32,) * 4}, stem_width=8, stem="fixed"),
    "res2net": flaxres.Res2Net(**SMALL, stem_width=8, output_stride=16),
    "resnest": flaxres.ResNeSt(**SMALL, stem_width=8, stem="deep", shortcut="average"),
    "sknet": flaxres.SKNet(**SMALL, stem_width=8, block="basic"),
    "convnext": flaxres.ConvNeXt(**SMALL),
    "convnext-dilated": flaxres.ConvNeXt(**SMALL, stem="overlap", output_stride=8),
    "regnet": flaxres.RegNet(**SMALL, stem_width=8, se_ratio=0.25),
    "regnet-dilated": flaxres.RegNet(**SMALL, stem_width=8, output_stride=8),
    "regnetv": flaxres.RegNet(
        **SMALL, stem_width=8, preactivation=True, shortcut="average", output_stride=8
    ),
    "nfnet": flaxres.NFNet(**SMALL, stem_width=8, group_width=4, last_width=0),
    "nfnet-single": flaxres.NFNet(
        **SMALL, stem_width=8, group_width=None, stem="single", same_padding=True, output_stride=8
    ),
    "legacy": flaxres.LegacySENet(**SMALL, stem_width=8),
    "clip": flaxres.CLIPResNet(**SMALL | {"widths": (8, 8, 8, 64)}, stem_width=8, image_size=32),
    "resnet9": flaxres.ResNet9(depths=(1, 1), widths=(8, 8), stem_width=8),
    "dense": flaxres.DenseNet(depths=(1, 1, 1), growth=8, stem_width=8),
}
SIDES = (1, 4, 7, 8, 29, 31, 64)  # benchmarks.sides takes all below 66


@pytest.mark.parametrize("name", NETWORKS)
def test_extents_are_those_of_the_maps(name: str) -> None:
    """Traces each side with one of another length, so that the axes can't be confused."""
    model = NETWORKS[name]
    good = [side for side in SIDES if model.extents(side) is not None]
    assert good
    initialise = functools.partial(model.init_with_output, features=True)
    for side in SIDES:
        images = jax.ShapeDtypeStruct((2, side, good[-1], 3), jnp.float32)
        if side not in good:
            with pytest.raises(InputError, match=rf"images of {side}x{good[-1]} .*side of {side}"):
                jax.eval_shape(initialise, jax.random.key(0), images)
            continue
        maps = jax.eval_shape(initialise, jax.random.key(0), images)[0]
        stages = [
            maps[f"stage{i}"].shape[1:3] for i in range(1, len(model.extents(side) or ()) + 1)
        ]
        assert stages == list(
            zip(model.extents(side) or (), model.extents(good[-1]) or (), strict=True)
        )


@pytest.mark.parametrize(
    ("name", "side", "nearest"),
    [
        # Means over pairs leave 1 pixel of 3, and the shortcut 2, to which 1 would be broadcast.
        ("resnetaa50", 47, "34 or 63"),
        ("resnetaa50", 24, "31"),
        # Four halvings of 4 pixels leave none, and the mean of none is NaN.
        ("densenet121", 16, "29"),
        ("resnetblur50", 1, "17"),
        ("resnet9", 7, "8"),
    ],
)
def test_other_sides_are_refused_with_the_nearest(name: str, side: int, nearest: str) -> None:
    model = flaxres.create_model(name, num_classes=2)
    with pytest.raises(InputError, match=rf"resize their side of {side} to {nearest}\b"):
        model.init(jax.random.key(0), jnp.zeros((1, side, side, 3)))
