"""Layers of NNX networks that are replaced by other modules."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flaxres
import flaxres.nnx
from flaxres import InputError
from tests.nnx.small import IMAGES, forward, network, same


def test_a_new_head_trains_alone() -> None:
    model = network()
    model.fc = nnx.Linear(8, 2, rngs=nnx.Rngs(1))
    head = nnx.All(nnx.Param, nnx.PathContains("fc"))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=head)
    before = nnx.to_pure_dict(nnx.state(model, nnx.Param))

    @nnx.jit
    def step(model: Any, optimizer: Any, images: jax.Array) -> None:
        gradients = nnx.grad(
            lambda model: jnp.square(model(images) - 1).mean(), argnums=nnx.DiffState(0, head)
        )(model)
        optimizer.update(model, gradients)

    step(model, optimizer, IMAGES)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    head_before, head_after = before.pop("fc"), after.pop("fc")
    assert same(before, after)
    assert not np.array_equal(head_before["kernel"], head_after["kernel"])


def replaced(**attributes: Any) -> flaxres.nnx.ResNet:
    """Returns a network with a layer that draws, updates statistics and has parameters."""
    model, rngs = network(**attributes), nnx.Rngs(5)
    model.layer1[1].conv2 = nnx.Sequential(
        nnx.Conv(4, 4, (3, 3), rngs=rngs),
        nnx.BatchNorm(4, rngs=rngs),
        nnx.Dropout(0.5, rngs=rngs),
    )
    model.layer1[1].bn2.scale.set_value(jnp.ones(4))  # zero would stop the gradient
    return model


@pytest.mark.slow
def test_a_replaced_layer_trains_also_under_remat() -> None:
    @nnx.jit
    def gradients(model: Any, images: jax.Array) -> Any:
        return nnx.grad(lambda model: jnp.square(model(images)).sum())(model)

    plain, remat = replaced(), replaced(remat=True)
    found = [nnx.to_pure_dict(gradients(model, IMAGES)) for model in (plain, remat)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *found)
    for model, gradient in zip((plain, remat), found, strict=True):
        _, norm, dropout = model.layer1[1].conv2.layers
        assert np.abs(gradient["layer1"]["1"]["conv2"]["layers"][0]["kernel"]).max() > 0
        assert np.abs(norm.mean[...]).max() > 0
        assert dropout.rngs.count[...] == 1
    # In inference nothing is written, so the network may be a constant of another trace.
    remat.eval()
    assert jax.jit(jax.grad(lambda x: remat(x).sum()))(IMAGES).any()


def test_a_replaced_norm_keeps_what_follows_it() -> None:
    model = network(stem="standard")  # norm, ReLU and max pooling in one
    other = nnx.BatchNorm(4, epsilon=1e-5, rngs=nnx.Rngs(0))
    for name in ("mean", "var", "scale", "bias"):
        getattr(other, name).set_value(getattr(model.bn1, name)[...])
    model.eval()
    images = np.repeat(IMAGES, 4, 1).repeat(4, 2)
    expected = forward(model, images)
    model.bn1 = other
    other.eval()
    np.testing.assert_allclose(forward(model, images), expected, rtol=1e-4, atol=1e-5)


def test_a_layer_of_another_network_is_called_as_it_is() -> None:
    model, other = network(), network(stochastic_depth=0.0, bn_momentum=0.5)
    model.layer1[1] = other.layer1[2]
    before = [block.bn1.mean[...] for block in other.layer1]
    forward(model, IMAGES)
    changed = [
        not np.array_equal(block.bn1.mean[...], mean)
        for block, mean in zip(other.layer1, before, strict=True)
    ]
    assert changed == [False, False, True]


def test_what_cannot_stand_for_a_layer_is_refused() -> None:
    model = network()
    with pytest.raises(InputError, match=r"fc is a function: .* wrap a function in nnx.Sequential"):
        model.fc = lambda x: x
    with pytest.raises(InputError, match=r"layer1\.0 is a NoneType"):
        model.layer1[0] = None
    with pytest.raises(IndexError, match="Stage at layer1 has no 3: choose from 0, 1, 2"):
        model.layer1[3] = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    model.bn1 = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="bn1 was replaced by a BatchNorm, which has no place"):
        flaxres.nnx.to_linen(model)
    del model.fc
    with pytest.raises(InputError, match="ResNet at the root has no 'fc' any more"):
        model(IMAGES)


def test_a_dense_layer_within_a_block_is_no_head() -> None:
    model = flaxres.nnx.ConvNeXt(depths=(1,), widths=(8,), num_classes=5, rngs=nnx.Rngs(0))
    model.head.fc = nnx.Linear(8, 2, rngs=nnx.Rngs(1))
    assert flaxres.nnx.to_linen(model)[0].num_classes == 2
    model.stages[0].blocks[0].mlp.fc1 = nnx.Linear(8, 32, rngs=nnx.Rngs(1))
    with pytest.raises(InputError, match=r"mlp.fc1 was replaced by a Linear"):
        flaxres.nnx.to_linen(model)
