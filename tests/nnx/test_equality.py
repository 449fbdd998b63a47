"""NNX networks compute what the Linen networks compute, to the bit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flaxres
import flaxres.nnx
from benchmarks.textbook import plain_step
from flaxres.models.registry import MODELS
from tools.nnx_equality import programs, smallest_side, steps

# A name of each family, and of each kind of layer.
SAMPLE = [
    *("resnet50", "resnet50_gn", "seresnext26t_32x4d", "ecaresnet26t"),
    *("densenetblur121d", "resnetv2_50d_evos", "resnetv2_50x1_bit"),
    *("res2net50_26w_4s", "resnest50d", "skresnet18", "regnety_002", "convnextv2_atto"),
    *("regnetv_064", "nf_regnet_b0", "legacy_seresnet18", "resnet50_clip", "convnext_zepto_rms"),
]
OPTIONS: list[dict[str, Any]] = [
    {"depths": (1, 1, 1), "remat": True, "bn_group": 1},
    {"scan_blocks": True, "remat": True},
    {"depths": (1, 1, 1), "dtype": jnp.bfloat16, "num_classes": 0, "in_channels": 1},
]
# Small enough to compile and run here.
RUN: list[tuple[str, dict[str, Any]]] = [
    ("resnet50", {"depths": (1, 1), "widths": (4, 4), "stem_width": 4}),
    ("resnetv2_18", {"depths": (1, 1), "widths": (4, 8), "stem_width": 4}),
    ("densenet121", {"depths": (1, 1), "growth": 4, "stem_width": 4}),
]


def limited(name: str, blocks: int, stages: int = 4) -> dict[str, Any]:
    """Returns the attributes that limit the blocks of each stage, and the stages."""
    network = MODELS[name]()
    if getattr(network, "pruned", ()):
        return {}
    attributes = {"depths": tuple(min(depth, blocks) for depth in network.depths[:stages])}
    for name in ("widths", "block"):
        if isinstance(value := getattr(network, name, None), tuple):
            attributes[name] = value[:stages]
    return attributes


LONG = ("resnet20", "resnetrs50", "resnetv2_18", "convnext_large_mlp")


@pytest.mark.parametrize(
    "name", [*SAMPLE, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)]
)
def test_the_program_of_a_name_is_linens(name: str) -> None:
    linen, nnx_ = programs(name, **limited(name, 1, 2))
    assert linen == nnx_
    assert "stablehlo.convolution" in linen


@pytest.mark.slow
@pytest.mark.parametrize("name", flaxres.list_models()[::12])
def test_the_program_of_every_twelfth_name_is_linens(name: str) -> None:
    """Takes two blocks of two stages; `python -m tools.nnx_equality` takes all networks, whole."""
    linen, nnx_ = programs(name, **limited(name, 2, 2))
    assert linen == nnx_


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
def test_the_program_of_an_option_is_linens(options: dict[str, Any]) -> None:
    linen, nnx_ = programs("resnet20", **options)
    assert linen == nnx_


@pytest.mark.parametrize(
    ("name", "options"),
    [pytest.param(*row, marks=[pytest.mark.slow] * (i > 0)) for i, row in enumerate(RUN)],
    ids=[name for name, _ in RUN],
)
def test_logits_gradients_and_statistics_are_linens(name: str, options: dict[str, Any]) -> None:
    linen, nnx_, (_, _, images) = steps(name, **options)
    model = flaxres.create_model(name, **options)
    x = jax.random.normal(jax.random.key(1), images.shape)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    # Linen starts the last norm of a block at zero, through which no gradient passes.
    params = jax.tree.map(lambda leaf: leaf + 0.1, variables["params"])
    arguments = (params, variables.get("batch_stats", {}), x)
    expected, found = jax.jit(linen)(*arguments), jax.jit(nnx_)(*arguments)
    jax.tree.map(np.testing.assert_array_equal, expected, found)
    logits, train_logits, _, gradients = found
    assert all(bool(leaf.any()) for leaf in jax.tree.leaves((logits, train_logits)))
    assert sum(bool(leaf.any()) for leaf in jax.tree.leaves(gradients)) > 5


@pytest.mark.slow
def test_steps_of_an_nnx_optimizer_are_linens() -> None:
    """Takes two steps of SGD with momentum from the same key."""
    name, tx = "resnet9", optax.sgd(0.1, 0.9)
    small: dict[str, Any] = {"widths": (8, 8), "depths": (2, 2), "stem_width": 8}
    linen = flaxres.create_model(name, **small)
    model = flaxres.nnx.create_model(name, rngs=nnx.Rngs(params=7), **small)
    side = smallest_side(linen)
    images = jax.random.normal(jax.random.key(1), (4, side, side, 3))
    labels = jnp.arange(4)
    variables = jax.jit(linen.init)(nnx.Rngs(params=7).params(), images)
    jax.tree.map(
        np.testing.assert_array_equal,
        flaxres.nnx.to_linen(model)[1],
        dict(variables),
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def train_step(model: Any, optimizer: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss(model: Any) -> jax.Array:
            logits = model(images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    step, opt_state = jax.jit(plain_step(linen, tx)), tx.init(variables["params"])
    for _ in range(2):
        variables, opt_state, expected = step(variables, opt_state, images, labels)
        found = train_step(model, optimizer, images, labels)
        assert found == expected
    jax.tree.map(np.testing.assert_array_equal, flaxres.nnx.to_linen(model)[1], dict(variables))
