"""Attributes that no network can have are refused, and those at the edge of their range work."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxres
from flaxres.errors import InputError

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(4, 32, 32, 3)), jnp.float32)
KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"depths": (1, 0, 1)}, r"depths \(=\(1, 0, 1\)\): the rule is whole numbers >= 1"),
        ({"depths": ()}, "depths"),
        ({"depths": (1, -3, 1)}, "depths"),
        ({"widths": (8, 0, 8)}, r"widths \(=\(8, 0, 8\)\): the rule is whole numbers >= 1"),
        ({"bn_group": 0}, r"bn_group \(=0\): the rule is a whole number >= 1"),
        ({"bn_group": -2}, "bn_group"),
        ({"dropout": 1.5}, r"dropout \(=1.5\): the rule is 0 to 1"),
        ({"stochastic_depth": -1.0}, "stochastic_depth"),
    ],
)
@pytest.mark.parametrize("network", [flaxres.ResNet20, flaxres.ResNet9], ids=["resnet", "resnet9"])
def test_an_attribute_out_of_range_is_refused(
    network: Any, attributes: dict[str, Any], message: str
) -> None:
    if network is flaxres.ResNet9 and "depths" not in attributes and "widths" not in attributes:
        attributes = attributes | {"depths": (1, 1, 1), "widths": (8, 8, 8)}
    with pytest.raises(InputError, match=message):
        jax.eval_shape(network(**attributes).init, KEY, IMAGES)


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        (flaxres.ConvNeXt, {"depths": (1, 0), "widths": (8, 8)}),
        (flaxres.NFNet, {"depths": (1, 0), "widths": (8, 8)}),
        (flaxres.DenseNet, {"depths": (1, 0)}),
        (flaxres.RegNet, {"depths": (1, 0), "widths": (8, 8)}),
    ],
)
def test_a_stage_without_blocks_is_refused(kind: Any, attributes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="depths"):
        jax.eval_shape(kind(**attributes).init, KEY, IMAGES)


@pytest.mark.parametrize("attribute", ["dropout", "stochastic_depth"])
def test_a_rate_of_one_drops_all_with_a_finite_gradient(attribute: str) -> None:
    model = flaxres.ResNet20(depths=(1, 1, 1), **{attribute: 1.0})
    variables = jax.jit(model.init)(KEY, IMAGES)

    def loss(params: Any) -> Any:
        logits, _ = model.apply(
            variables | {"params": params},
            IMAGES,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": KEY},
        )
        return jnp.square(logits - 1).sum()

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


def test_features_without_classes_are_not_dropped() -> None:
    model = flaxres.CLIPResNet(
        depths=(1, 1),
        widths=(64, 64),
        stem_width=8,
        image_size=32,
        num_classes=0,
        dropout=0.5,
    )
    variables = jax.jit(model.init)(KEY, IMAGES)
    options: Any = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": KEY}}
    found, _ = model.apply(variables, IMAGES, **options)
    maps, _ = model.apply(variables, IMAGES, features=True, **options)
    np.testing.assert_array_equal(found, maps["pooled"])


@pytest.mark.parametrize("attributes", [{"axis_name": "data"}, {"dropout": 0.1}])
def test_initialisation_in_training_needs_no_axis_and_no_other_key(
    attributes: dict[str, Any],
) -> None:
    model = flaxres.ResNet20(depths=(1, 1, 1), **attributes)
    expected = jax.eval_shape(model.init, KEY, IMAGES)
    assert jax.eval_shape(lambda: model.init(KEY, IMAGES, train=True)) == expected
