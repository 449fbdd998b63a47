"""Blocks, norms and stems of timm's variants, on networks of a few layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxres
from flaxres.errors import InputError
from flaxres.models.group_norms import EvoNorm
from flaxres.models.layers import norm_relu
from flaxres.weights.names import leaves, torch_name

RNG = np.random.default_rng(0)
SHAPE = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)


def shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a network's leaves by PyTorch's names."""
    variables = jax.eval_shape(model.init, jax.random.key(0), SHAPE)
    return {torch_name(path): leaf.shape for path, leaf in leaves(variables)}


def test_evo_norm_is_the_papers_formula_and_has_no_relu() -> None:
    x = RNG.normal(size=(2, 3, 5, 8)).astype(np.float32)
    values = {name: RNG.normal(size=8).astype(np.float32) for name in ("scale", "bias", "v")}
    norm = EvoNorm(groups=4)
    y = norm.apply({"params": values}, x, use_running_average=True)
    var = x.reshape(2, 3, 5, 4, 2).var((1, 2, 4), keepdims=True)
    std = np.broadcast_to(np.sqrt(var + 1e-5), (2, 3, 5, 4, 2)).reshape(x.shape)
    expected = x / (1 + np.exp(-values["v"] * x)) / std * values["scale"] + values["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    bound = norm.bind({"params": values})
    np.testing.assert_allclose(norm_relu(bound, jnp.asarray(x), True), y, rtol=1e-5, atol=1e-6)
    assert (np.asarray(y) < 0).any()
    with pytest.raises(InputError, match="must be divisible by the 3 groups"):
        EvoNorm(groups=3).init(jax.random.key(0), x, use_running_average=True)


def test_each_stage_may_have_blocks_of_its_type() -> None:
    small: dict[str, Any] = {"depths": (1, 1), "widths": (8, 16), "stem_width": 8}
    names = shapes(flaxres.ResNet(**small, block=("basic", "bottleneck")))
    assert "layer1.0.conv3.weight" not in names
    assert names["layer2.0.conv3.weight"] == (1, 1, 16, 64)
    for block, message in (
        (("basic", "wide"), "unknown block 'wide'"),
        (("basic",), "must have the same length"),
    ):
        with pytest.raises(InputError, match=message):
            shapes(flaxres.ResNet(**small, block=block))


def test_a_pruned_network_needs_the_width_of_every_convolution() -> None:
    small: dict[str, Any] = {"depths": (1, 2), "widths": (8, 16), "stem_width": 8}
    pruned = flaxres.ResNet(**small, attention="eca", pruned=(3, 4, 5, 6, 7, 9, 8, 2, 9))
    names = shapes(pruned)
    assert names["layer1.0.downsample.0.weight"] == (1, 1, 8, 5)
    assert names["layer2.1.conv3.weight"] == (1, 1, 2, 9)
    assert names["fc.weight"] == (9, 1000)
    assert shapes(pruned.clone(scan_blocks=True)) == names
    with pytest.raises(InputError, match="pruned has 3 widths, the blocks have 9"):
        shapes(pruned.clone(pruned=(3, 4, 5)))


def test_a_basic_preactivation_stage_that_keeps_its_shape_has_no_projection() -> None:
    names = shapes(flaxres.create_model("resnetv2_18"))
    projected = {name for name in names if "downsample" in name}
    assert projected == {f"stages.{i}.blocks.0.downsample.conv.weight" for i in (1, 2, 3)}


def test_a_blurred_stem_needs_two_pixels() -> None:
    model = flaxres.create_model("densenetblur121d", depths=(1,))
    assert model.extents(3) == [1]
    assert model.extents(2) is None
    with pytest.raises(InputError, match="unknown anti_alias"):
        shapes(model.clone(anti_alias="average"))
