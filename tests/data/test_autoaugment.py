"""RandAugment and TrivialAugmentWide draw like timm and torchvision."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxres.data.augment import sample_keys
from flaxres.data.autoaugment import (
    RAND_OPERATIONS,
    TRIVIAL_OPERATIONS,
    RandAugment,
    TrivialAugmentWide,
    policy,
)
from flaxres.data.operations import NUMBER, OPERATIONS
from flaxres.errors import InputError


def test_timms_form_is_understood_and_anything_else_refused() -> None:
    assert policy("rand-m7-mstd0.5-inc1") == RandAugment(7, 2, 0.5, 0.5, True)
    assert policy("rand-m9-n3-p1-inc0") == RandAugment(9, 3, 0, 1, False)
    assert policy("rand-m6-mstd101") == RandAugment(6, 2, math.inf)
    assert policy("ta_wide") == TrivialAugmentWide()
    for text in (
        "",
        "rand-x3",
        "random",
        "rand-m11",
        "rand-n0",
        "rand-n1.5",
        "rand-m7-m8",
        "rand-inc2",
        "rand-p2",
        "augmix",
        "rand-m7-",
    ):
        with pytest.raises(InputError, match="the rule is 'ta_wide', or timm's"):
            policy(text)


def test_rand_augment_draws_all_operations_alike_and_its_levels_follow_the_magnitude() -> None:
    keys = sample_keys(jax.random.key(1), jnp.arange(6000, dtype=jnp.uint32))
    chosen = RandAugment(7, 2, 0.5, 0.5, True)
    layers = chosen.draw(keys, (200, 100))
    assert len(layers) == 2
    for operation, level in layers:
        counts = np.bincount(operation, minlength=len(OPERATIONS))
        assert 0.46 < counts[0] / 6000 < 0.54, "each layer is applied with probability 1/2"
        assert counts[1:].min() > 140, "15 operations alike: 200 expected of each"
        assert counts[1:].max() < 260
        rotations = np.asarray(level)[operation == NUMBER["rotate"]]
        assert 0.35 < (rotations > 0).mean() < 0.65
        assert abs(np.abs(rotations).mean() - 21) < 0.5
        assert 1 < np.abs(rotations).std() < 2  # 0.5 of 10, of 30 degrees
    assert not np.array_equal(layers[0][0], layers[1][0])


@pytest.mark.extra
@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("magnitude", [0.0, 3.7, 6.0, 10.0])
def test_levels_are_timms(magnitude: float, increasing: bool) -> None:
    peers = pytest.importorskip("benchmarks.peers")
    try:
        peers.torch_and_timm()
    except ModuleNotFoundError as error:
        pytest.skip(f"{error}: needs the extra 'parity'")
    from timm.data import auto_augment

    ours = RandAugment(increasing=increasing).levels(
        jnp.asarray([magnitude]), jnp.ones(1), (200, 100)
    )[0]
    names = {
        "rotate": "Rotate",
        "solarize_add": "SolarizeAdd",
        "shear_x": "ShearX",
        "shear_y": "ShearY",
    }
    suffix = "Increasing" if increasing else ""
    names |= {
        name: name.capitalize() + suffix
        for name in ("posterize", "solarize", "color", "contrast", "brightness", "sharpness")
    }
    names |= {"translate_x": "TranslateXRel", "translate_y": "TranslateYRel"}
    for name, timms in names.items():
        function, results = auto_augment.LEVEL_TO_ARG[timms], set()
        for _ in range(30):  # the sign is random there
            value = function(magnitude, {})
            results.add(
                float(value[0] if isinstance(value, tuple) else value)
                * {"translate_x": 100, "translate_y": 200}.get(name, 1)
            )
        assert (
            min(abs(float(ours[RAND_OPERATIONS.index(name)]) - value) for value in results) < 1e-4
        ), name


def test_trivial_augment_draws_every_strength_of_every_operation() -> None:
    keys = sample_keys(jax.random.key(2), jnp.arange(20_000, dtype=jnp.uint32))
    ((operation, level),) = TrivialAugmentWide().draw(keys, (224, 224))
    counts = np.bincount(operation, minlength=len(OPERATIONS))
    assert counts[[NUMBER["invert"], NUMBER["solarize_add"]]].tolist() == [0, 0]
    assert counts[[NUMBER[name] for name in TRIVIAL_OPERATIONS]].min() > 1200  # 1,429 expected
    levels = {
        name: np.unique(np.asarray(level)[operation == NUMBER[name]]) for name in TRIVIAL_OPERATIONS
    }
    assert levels["posterize"].tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert (len(levels["rotate"]), levels["rotate"].max()) == (61, 135)
    assert levels["translate_x"].tolist() == sorted(
        {sign * (32 * i // 30) for i in range(31) for sign in (-1, 1)}
    )
    assert levels["brightness"].min() == pytest.approx(0.01)
    assert levels["solarize"].min() == 0
    assert levels["solarize"].max() == 255


def test_a_uniform_magnitude_spreads_from_zero() -> None:
    keys = sample_keys(jax.random.key(3), jnp.arange(4000, dtype=jnp.uint32))
    chosen = dataclasses.replace(RandAugment(8, 1, probability=1), deviation=math.inf)
    ((operation, level),) = chosen.draw(keys, (224, 224))
    rotations = np.abs(np.asarray(level)[operation == NUMBER["rotate"]])
    assert rotations.max() <= 24
    assert 10 < rotations.mean() < 14
