"""Norms that are folded into convolutions, and those that must stay."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxres
from flaxres.errors import InputError
from flaxres.inference.fold import folded


def test_a_convolution_that_a_shortcut_reads_as_well_is_not_folded() -> None:
    model = flaxres.create_model("resnetv2_18", stem="small", num_classes=4, depths=(1, 1, 1, 1))
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    train = jax.jit(lambda v: model.apply(v, images, train=True, mutable=["batch_stats"])[1])
    for _ in range(3):
        variables |= train(variables)
    changed, count = folded(model, variables)
    assert count == 4
    for features in (False, True):
        expected, found = (
            jax.jit(lambda v: model.apply(v, images, features=features))(v)  # noqa: B023
            for v in (variables, changed)
        )
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
        jax.tree.map(close, found, expected)


def test_scanned_blocks_are_not_folded() -> None:
    model = flaxres.ResNet20(scan_blocks=True)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(InputError, match="norms of scanned blocks are not folded"):
        folded(model, variables)
