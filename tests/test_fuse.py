"""Networks for inference in C++ compute what `model.apply` does, in one call a convolution."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import flaxres
from flaxres.data.preprocess import Preprocess
from flaxres.inference import fuse
from flaxres.inference.fuse import Chain, FusedNetwork, chains, network_function
from flaxres.inference.graph import Keys, graph_of
from flaxres.inference.predict import Predictor
from flaxres.models.network import Network
from flaxres.models.stage import unstack_blocks
from flaxres.ops import native
from tests.ops.native_cases import needs_compiler

pytestmark = needs_compiler
SIDE = 64


@pytest.fixture(autouse=True)
def use_native() -> None:
    native.use_native_convolutions()


def with_statistics(model: Network, side: int = SIDE) -> Any:
    """Returns variables whose norms do something."""
    rng = np.random.default_rng(0)
    images = jnp.zeros((1, side, side, model.in_channels))
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def drawn(path: Any, leaf: jax.Array) -> jax.Array:
        if path[-1].key in ("scale", "var"):
            return jnp.asarray(rng.uniform(0.5, 1.2, leaf.shape), leaf.dtype)
        if path[-1].key in ("bias", "mean"):
            return jnp.asarray(rng.normal(size=leaf.shape) / 10, leaf.dtype)
        return leaf

    return jax.tree_util.tree_map_with_path(drawn, variables)


def images_of(model: Network, count: int, side: int = SIDE) -> np.ndarray:
    shape = (count, side, side, model.in_channels)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def assert_alike(ours: Any, usual: Any, error: float) -> None:
    largest = float(np.abs(usual).max())
    np.testing.assert_allclose(ours, usual, rtol=0, atol=error * largest)


def parts(model: Network, variables: Mapping[str, Any], side: int = SIDE) -> list[Any]:
    """Returns the operations of a network, in chains."""
    leaves, tree = jax.tree.flatten(variables)
    apply = lambda leaves, images: model.apply(jax.tree.unflatten(tree, leaves), images)  # noqa: E731
    program = jax.make_jaxpr(apply)(leaves, images_of(model, 2, side))
    return list(chains(graph_of(program, len(leaves), Keys())))


# A member of each family, the number of its chains, and of those with a shortcut.
FAMILIES = [
    ("resnet18", 20, 8),
    ("resnet50", 53, 16),
    ("resnet50d", 55, 16),
    ("resnext50_32x4d", 37, 16),
    ("seresnet50", 85, 4),
    ("resnetv2_50", 54, 16),
    ("resnest14d", 23, 4),
    ("regnety_002", 55, 13),
    ("densenet121", 120, 0),
    ("convnext_atto", 24, 12),
]


@pytest.mark.parametrize(
    ("name", "count", "shortcuts"),
    [pytest.param(*row, marks=[pytest.mark.slow] * (row[0] != "resnet18")) for row in FAMILIES],
)
def test_a_network_is_itself(name: str, count: int, shortcuts: int) -> None:
    model = flaxres.create_model(name)
    variables, images = with_statistics(model), images_of(model, 3)
    found = [part for part in parts(model, variables) if isinstance(part, Chain)]
    assert len(found) == count
    assert sum(chain.shortcut is not None for chain in found) == shortcuts
    usual = jax.jit(model.apply)(variables, images)
    assert_alike(FusedNetwork(model, variables)(images), usual, 1e-5)


def test_nothing_but_the_pooling_and_the_head_is_left_of_a_resnet() -> None:
    model = flaxres.ResNet50()
    names = {
        part.primitive.name
        for part in parts(model, with_statistics(model))
        if not isinstance(part, Chain)
    }
    pooling = {"platform_index", "cond", "sub", "mul", "add", "max"}
    assert names - {"broadcast_in_dim"} == pooling | {"reduce_sum", "div", "dot_general"}


@pytest.mark.slow
def test_bfloat16_is_rounded_once_a_chain() -> None:
    if not native.computes("bfloat16"):
        pytest.skip("this processor doesn't multiply bfloat16")
    model = flaxres.ResNet20(dtype=jnp.bfloat16)
    variables, images = with_statistics(model, 32), images_of(model, 3, 32)
    exact: Any = flaxres.ResNet20().apply(variables, images)
    ours: Any = FusedNetwork(model, variables)(images)
    usual: Any = model.apply(variables, images)
    assert_alike(ours, exact, 0.02)
    assert float(jnp.abs(ours - exact).mean()) < float(jnp.abs(usual - exact).mean())


def test_many_images_pass_in_parts_and_share_the_kernels() -> None:
    model = flaxres.ResNet20()
    variables, images = with_statistics(model, 32), images_of(model, 19, 32)
    network = FusedNetwork(model, variables)
    usual: Any = model.apply(variables, images)
    assert_alike(network(images), usual, 1e-5)
    kept = len(network._arrays)
    assert_alike(network(images[:5]), usual[:5], 1e-5)
    assert network(images[:0]).shape == (0, 10)
    assert len(network._programs) == 4
    assert len(network._arrays) == kept


def test_scanned_blocks_are_unrolled() -> None:
    model = flaxres.ResNet20(scan_blocks=True)
    variables, images = with_statistics(model, 32), images_of(model, 2, 32)
    alone = model.clone(scan_blocks=False)
    usual = alone.apply(unstack_blocks(variables), images)
    assert_alike(FusedNetwork(model, variables)(images), usual, 1e-5)


def test_a_predictor_takes_it_where_there_is_native_code(monkeypatch: pytest.MonkeyPatch) -> None:
    model = flaxres.ResNet20()
    variables = with_statistics(model, 32)
    image = Image.fromarray(np.arange(3072, dtype=np.uint8).reshape(32, 32, 3))
    names = tuple(map(str, range(10)))
    assert isinstance(network_function(model, variables), FusedNetwork)
    native_best = Predictor(model, variables, Preprocess(32, 32), names)([image])
    monkeypatch.setattr(native, "compiled_by", "")
    assert not isinstance(network_function(model, variables), FusedNetwork)
    best = Predictor(model, variables, Preprocess(32, 32), names)([image])
    assert [name for name, _ in native_best[0]] == [name for name, _ in best[0]]
    np.testing.assert_allclose(
        [share for _, share in native_best[0]], [share for _, share in best[0]], atol=1e-6
    )


def test_what_two_read_is_computed_once() -> None:
    """A result with two readers ends its chain; what follows in another dtype is not rounded."""
    import flax.linen as nn

    from flaxres.models.layers import BatchNorm, Conv

    class Forked(nn.Module):
        in_channels: int = 3
        scan_blocks: bool = False

        @nn.compact
        def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            y = Conv(16, name="one")(x)
            z = nn.relu(BatchNorm(name="bn")(y, True))
            return y, z + y, (y * 2).astype(jnp.float16)

    model: Any = Forked()
    variables, images = with_statistics(model, 8), images_of(model, 2, 8)
    found = parts(model, variables, 8)
    assert [part.steps for part in found if isinstance(part, Chain)] == [()]
    for ours, usual in zip(
        fuse.FusedNetwork(model, variables)(images), model.apply(variables, images), strict=True
    ):
        assert ours.dtype == usual.dtype
        assert_alike(ours, usual, 1e-5)


def test_a_traced_network_is_that_of_xla() -> None:
    model = flaxres.ResNet20(depths=(1, 1, 1))
    variables, images = with_statistics(model, 32), images_of(model, 2, 32)
    network = FusedNetwork(model, variables)
    eager = network(images)
    np.testing.assert_allclose(jax.jit(network)(images), eager, rtol=1e-4, atol=1e-5)
