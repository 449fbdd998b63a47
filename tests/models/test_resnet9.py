"""ResNet-9: its size, its arithmetic against PyTorch's, and refusals."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxres
from benchmarks.peers import torch_resnet9
from flaxres.errors import InputError
from flaxres.weights.transfer import torch_from_variables

PAGES = 6_573_120 + 10
"""Of Page's network (2018), and the head's biases, which his has not."""
SMALL: dict[str, Any] = {"depths": (2, 1, 3), "widths": (8, 12, 16), "stem_width": 4}


def random_variables(model: flaxres.ResNet9, images: jax.Array) -> Any:
    """Returns random variables, statistics included; half of the scales are negative."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)
    return {
        "params": jax.tree.map(
            lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes["params"]
        ),
        "batch_stats": jax.tree.map(
            lambda leaf: jnp.asarray(rng.uniform(0.5, 2, leaf.shape), jnp.float32),
            shapes["batch_stats"],
        ),
    }


def test_parameters_and_shapes() -> None:
    model, images = (
        flaxres.create_model("resnet9"),
        jax.ShapeDtypeStruct((2, 32, 28, 3), jnp.float32),
    )
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PAGES
    maps = jax.eval_shape(lambda v, x: model.apply(v, x, features=True), variables, images)
    assert {name: leaf.shape[1:] for name, leaf in maps.items()} == {
        "stem": (32, 28, 64),
        "stage1": (16, 14, 128),
        "stage2": (8, 7, 256),
        "stage3": (4, 3, 512),
        "pooled": (512,),
    }


@pytest.mark.extra
def test_logits_are_pytorchs() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    images = jax.random.normal(jax.random.key(0), (3, 17, 24, 3))
    model = flaxres.ResNet9(**SMALL)
    variables = random_variables(model, images)
    peer = torch_resnet9(torch, 10, *SMALL.values()).eval()
    arrays = torch_from_variables(variables)
    peer.load_state_dict({name: torch.tensor(np.array(array)) for name, array in arrays.items()})
    with torch.no_grad():
        expected = peer(torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)).numpy()
    logits = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_stochastic_depth_drops_residual_blocks_alone() -> None:
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    model = flaxres.ResNet9(
        **SMALL | {"depths": (1, 1, 3), "stochastic_depth": 1.0}
    )  # by rates of 0 and 1
    variables = random_variables(model, images)

    @jax.jit
    def pooled(variables: Any) -> jax.Array:
        apply = functools.partial(
            model.apply,
            train=True,
            features=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return apply(variables, images)[0]["pooled"]

    def without(block: str) -> Any:
        layer = {
            **variables["params"]["layer3"],
            block: jax.tree.map(jnp.zeros_like, variables["params"]["layer3"][block]),
        }
        return {**variables, "params": {**variables["params"], "layer3": layer}}

    np.testing.assert_array_equal(pooled(without("2")), pooled(variables))
    assert (pooled(without("1")) != pooled(variables)).any()
    with pytest.raises(InputError, match="has none: leave it at 0"):
        jax.eval_shape(model.clone(depths=(1, 1, 1)).init, jax.random.key(0), images)


def test_refusals_name_the_rule() -> None:
    with pytest.raises(InputError, match="depths .* and widths .* equally many"):
        jax.eval_shape(
            flaxres.ResNet9(depths=(1,)).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
        )
    with pytest.raises(InputError, match=r"images of 7x32 .* resize their side of 7 to 8\b"):
        jax.eval_shape(flaxres.ResNet9().init, jax.random.key(0), jnp.zeros((1, 7, 32, 3)))
