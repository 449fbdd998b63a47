"""The modules in users' programs: scanned, rematerialised, mapped, frozen, in NNX.

Stochastic depth is tested here as well.
"""

from collections.abc import Iterator
from typing import Any

import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import PartitionSpec

import flaxres
from flaxres.models.stage import stack_blocks, unstack_blocks
from flaxres.training.mesh import data_mesh

X = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32)
Y = np.arange(8) % 4
SMALL: dict[str, Any] = {
    "depths": (4, 4),
    "block": "basic",
    "widths": (8, 16),
    "stem": "small",
    "stem_width": 8,
    "num_classes": 4,
}
NINE = flaxres.ResNet9(4, depths=(1, 4), widths=(8, 12), stem_width=4)


def random_variables(model: Any) -> Any:
    """Random variables; the last gammas aren't zero, so that every parameter matters."""
    shapes, rng = jax.eval_shape(model.init, jax.random.key(0), X), np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(-0.3, 0.3, leaf.shape) + (leaf.ndim == 1), leaf.dtype),
        shapes,
    )


def loss_and_gradients(model: Any, variables: Any) -> Any:
    def loss(params: Any) -> Any:
        logits, new = model.apply(
            variables | {"params": params}, X, train=True, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, Y).mean(), new["batch_stats"]

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])


def close(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(
            x, y, rtol=tolerance, atol=tolerance * max(float(jnp.abs(y).max()), 1e-3)
        )


@pytest.mark.parametrize(
    ("form", "plain"),
    [
        pytest.param(
            "scanned", flaxres.ResNet(**SMALL), id="scanned-resnet", marks=pytest.mark.slow
        ),
        pytest.param(
            "scanned and remat",
            flaxres.ResNet(**SMALL),
            id="both-resnet",
            marks=pytest.mark.slow,
        ),
        pytest.param("scanned", NINE, id="scanned-resnet9", marks=pytest.mark.slow),
        pytest.param("remat", NINE, id="remat-resnet9"),
    ],
)
def test_scanned_and_rematerialised_blocks_train_alike(form: str, plain: Any) -> None:
    with jax.enable_x64(True):
        plain = plain.clone(dtype=jnp.float64, param_dtype=jnp.float64, parent=None)
        variables = random_variables(plain)
        other = plain.clone(scan_blocks="scanned" in form, remat="remat" in form, parent=None)
        like = jax.eval_shape(other.init, jax.random.key(0), X)
        given = stack_blocks(variables, like) if "scanned" in form else variables
        (loss, stats), gradients = loss_and_gradients(other, given)
        (expected, expected_stats), expected_gradients = loss_and_gradients(plain, variables)
        assert float(loss) == pytest.approx(float(expected), rel=1e-12)
        close(unstack_blocks(gradients), expected_gradients, 1e-10)
        close(unstack_blocks(stats), expected_stats, 1e-12)


def rematerialised(jaxpr: Any, scanned: bool = False) -> Iterator[tuple[bool, bool]]:
    """Yields for each recomputed block whether it is in a scan, and whether barriers keep it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name.startswith(("remat", "checkpoint")):
            yield scanned, equation.params["prevent_cse"]
        for inner in jaxprs_in_params(equation.params):
            yield from rematerialised(inner, scanned or equation.primitive.name == "scan")


def test_the_compiler_may_merge_recomputed_blocks_of_a_scan_alone() -> None:
    """Else it does, and `remat` saves nothing: 718 MB in place of 363 on a TPU v5e."""
    model = flaxres.ResNet(**SMALL | {"depths": (4, 2)}, scan_blocks=True, remat=True)
    variables = jax.eval_shape(model.init, jax.random.key(0), X)
    traced = jax.make_jaxpr(lambda variables: model.apply(variables, X))(variables)
    blocks = [(False, True), (True, False), (False, True), (False, True)]
    assert list(rematerialised(traced.jaxpr)) == blocks


@pytest.mark.slow
def test_resnet152_scanned_equals_unrolled() -> None:
    model = flaxres.ResNet152(num_classes=4)
    shapes, rng = (
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))),
        np.random.default_rng(1),
    )
    variables = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(0, 0.02, s.shape) + (s.ndim == 1), s.dtype), shapes
    )
    images = rng.normal(size=(2, 64, 64, 3)).astype(np.float32)
    scanned = model.clone(scan_blocks=True)
    like = jax.eval_shape(scanned.init, jax.random.key(0), images)
    ours = jax.jit(scanned.apply)(stack_blocks(variables, like), images)
    expected = jax.jit(model.apply)(variables, images)
    assert float(jnp.abs(ours - expected).max() / jnp.abs(expected).max()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({}, id="narrow"),
        pytest.param({"widths": (32, 130, 130), "depths": (4, 4, 2)}, id="wide"),
    ],
)
def test_shard_map_and_pmap_train_as_one_device_does(sizes: dict[str, tuple[int, ...]]) -> None:
    """Covers products too: the wide network ends in convolutions over two pixels a side."""
    plain = flaxres.ResNet(**SMALL | sizes)
    variables, mapped = random_variables(plain), plain.clone(axis_name="data")
    (expected, stats), gradients = loss_and_gradients(plain, variables)

    def shard(params: Any, x: Any, y: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, new = mapped.apply(
                variables | {"params": params}, x, train=True, mutable=["batch_stats"]
            )
            return jax.lax.pmean(
                optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), "data"
            ), new["batch_stats"]

        return jax.value_and_grad(loss, has_aux=True)(params)

    data, whole = PartitionSpec("data"), PartitionSpec()
    (loss, new), sharded = jax.jit(
        jax.shard_map(shard, mesh=data_mesh(4), in_specs=(whole, data, data), out_specs=whole)
    )(variables["params"], X, Y)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    close(new, stats)
    close(sharded, gradients, 1e-4)

    split = X.reshape(4, 2, 8, 8, 3)
    logits = jax.pmap(
        lambda x: mapped.apply(variables, x, train=True, mutable=["batch_stats"])[0],
        axis_name="data",
        devices=jax.devices()[:4],
    )(split)
    expected_logits = jax.jit(
        lambda x: plain.apply(variables, x, train=True, mutable=["batch_stats"])[0]
    )(X)
    np.testing.assert_allclose(logits.reshape(8, 4), expected_logits, rtol=1e-4, atol=1e-4)


def test_the_modules_work_in_nnx() -> None:
    model = flax.nnx.bridge.ToNNX(flaxres.ResNet(**SMALL), rngs=flax.nnx.Rngs(0))
    flax.nnx.bridge.lazy_init(model, X)
    before = np.array(model.bn1["mean"][...])
    assert model(X, train=True, mutable=["batch_stats"]).shape == (8, 4)
    assert (np.asarray(model.bn1["mean"][...]) != before).any()


def test_a_frozen_backbone_keeps_its_parameters_and_statistics() -> None:
    model = flaxres.ResNet(**SMALL, bn_frozen=True)
    variables = random_variables(model)
    labels = {
        name: jax.tree.map(lambda _, name=name: "head" if name == "fc" else "frozen", part)
        for name, part in variables["params"].items()
    }
    tx = optax.multi_transform({"head": optax.sgd(0.1), "frozen": optax.set_to_zero()}, labels)
    (_, stats), gradients = loss_and_gradients(model, variables)
    updates, _ = tx.update(gradients, tx.init(variables["params"]), variables["params"])
    trained = optax.apply_updates(variables["params"], updates)
    for name, part in trained.items():
        same = jax.tree.all(
            jax.tree.map(lambda a, b: bool((a == b).all()), part, variables["params"][name])
        )
        assert same == (name != "fc")
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool((a == b).all()), stats, variables["batch_stats"])
    )


def test_stochastic_depth_drops_whole_branches_and_keeps_the_mean() -> None:
    model = flaxres.ResNet(**SMALL | {"depths": (2,), "widths": (8,)}, stochastic_depth=0.5)
    variables = random_variables(model)
    images = np.repeat(X[:1], 512, 0)
    drop = jax.jit(
        lambda key: model.clone(bn_frozen=True).apply(
            variables,
            images,
            train=True,
            mutable=["batch_stats"],
            features=True,
            rngs={"dropout": key},
        )
    )
    maps = np.asarray(drop(jax.random.key(0))[0]["stage1"])
    plain = np.asarray(
        jax.jit(lambda: model.apply(variables, images[:1], features=True))()["stage1"]
    )
    outcomes = np.unique(maps.reshape(512, -1)[:, :50].round(4), axis=0)
    assert len(outcomes) == 2  # the last block's branch is there, doubled, or it isn't
    assert (maps != plain).any()
    np.testing.assert_array_equal(drop(jax.random.key(0))[0]["stage1"], maps)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_output_stride(stride: int) -> None:
    model = flaxres.ResNet50(output_stride=stride, num_classes=0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    maps = jax.eval_shape(
        lambda v, x: model.apply(v, x, features=True), shapes, jnp.zeros((1, 64, 64, 3))
    )
    assert maps["stage4"].shape == (1, 64 // stride, 64 // stride, 2048)
