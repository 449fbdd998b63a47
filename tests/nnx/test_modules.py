"""NNX networks as modules: trees, modes, keys, layers alone, scanned blocks, arguments."""

import dataclasses
import functools
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flaxres
import flaxres.nnx
from flaxres import InputError
from flaxres.models import named
from tests.nnx.small import IMAGES, SMALL, forward, network, same


def test_trees_and_initial_values_are_linens(linen: flaxres.ResNet) -> None:
    model = flaxres.nnx.ResNet(**SMALL, rngs=nnx.Rngs(params=0, dropout=1))
    variables = jax.jit(linen.init)(nnx.Rngs(params=0).params(), IMAGES)
    params, statistics = nnx.state(model, nnx.Param, nnx.BatchStat)
    assert same(nnx.to_pure_dict(params), variables["params"])
    assert same(nnx.to_pure_dict(statistics), variables["batch_stats"])
    assert model.layer1[0].conv1.kernel is vars(model.layer1)["0"].conv1.kernel
    assert isinstance(model.layer1[0].conv1.kernel, nnx.Param)
    assert isinstance(model.bn1.mean, nnx.BatchStat)


@pytest.mark.parametrize("scan", [False, True])
def test_from_linen_and_back_is_lossless(scan: bool, linen: flaxres.ResNet) -> None:
    linen = linen.clone(scan_blocks=scan, parent=None)
    variables = jax.eval_shape(linen.init, jax.random.key(0), IMAGES)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), variables)
    found, back = flaxres.nnx.to_linen(flaxres.nnx.from_linen(linen, variables))
    assert found == linen
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    assert same(back, variables)


def test_variables_of_another_network_are_refused(
    model: flaxres.nnx.ResNet, linen: flaxres.ResNet
) -> None:
    _, variables = flaxres.nnx.to_linen(model)
    cases = [
        ({}, r"variables lack batch_stats.bn1.mean"),
        ({**variables, "other": {"a": np.ones(1)}}, r"have other.a, which the network lacks"),
    ]
    for wrong, message in cases:
        with pytest.raises(InputError, match=message):
            flaxres.nnx.from_linen(linen, wrong)
    wide = linen.clone(num_classes=4, parent=None)
    with pytest.raises(InputError, match=r"params.fc.bias of shape \(3,\), the network of \(4,\)"):
        flaxres.nnx.from_linen(wide, variables)
    with pytest.raises(InputError, match="scan_blocks"):
        flaxres.nnx.from_linen(linen.clone(scan_blocks=True, parent=None), variables)
    own = type("Own", (flaxres.ResNet,), {})(**SMALL)
    with pytest.raises(InputError, match="Own is none of ResNet, ResNetV2, ResNet9, DenseNet"):
        flaxres.nnx.from_linen(own, variables)


def test_modes_decide_what_a_call_does() -> None:
    model = network()
    start = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    model.eval()
    inference = forward(model, IMAGES)
    assert same(start, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))
    model.train()
    model.layer1[0].set_attributes(flaxres.nnx.BatchNorm, use_running_average=True)
    logits = forward(model, IMAGES)
    assert not np.allclose(logits, inference)
    new = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    assert same(start["layer1"]["0"], new["layer1"]["0"])
    assert not same(start["layer1"]["1"], new["layer1"]["1"])
    assert nnx.view(model, use_running_average=True).bn1.use_running_average
    assert not model.bn1.use_running_average


def test_frozen_statistics_stay_in_training() -> None:
    model = network(bn_frozen=True)
    start = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    logits = forward(model, IMAGES)
    assert same(start, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))
    model.eval()
    assert np.array_equal(logits, forward(model, IMAGES))


def test_features_are_linens(model: flaxres.nnx.ResNet, linen: flaxres.ResNet) -> None:
    _, variables = flaxres.nnx.to_linen(model)
    inference = nnx.view(model, use_running_average=True)
    found = nnx.jit(lambda model, x: model(x, features=True))(inference, IMAGES)
    expected = jax.jit(lambda v, x: linen.apply(v, x, features=True))(variables, IMAGES)
    assert sorted(found) == ["pooled", "stage1", "stage2", "stem"]
    assert same(found, expected)


def test_layers_are_called_alone(model: flaxres.nnx.ResNet, linen: flaxres.ResNet) -> None:
    maps = nnx.jit(lambda model, x: model(x, features=True))

    @nnx.jit
    def by_hand(model: Any, x: jax.Array) -> Any:
        norm = model.bn1(model.conv1(x))
        x = stem = nnx.relu(norm)
        for block in model.layer1:
            x = block(x)
        logits = model.fc(model.layer2(x).mean((1, 2)))
        return {"norm": norm, "stem": stem, "stage1": x, "logits": logits}

    assert model.layer1[-1] is model.layer1["2"]
    assert model.layer1[-1] is not model.layer1[0]
    inference = nnx.view(model, use_running_average=True)
    found, expected = by_hand(inference, IMAGES), maps(inference, IMAGES)
    assert (found["norm"] < 0).any()
    for name in ("stem", "stage1"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["logits"], forward(inference, IMAGES), rtol=1e-5, atol=1e-6)


def test_scanned_blocks_run_and_are_not_taken_apart() -> None:
    unrolled, linen = network(), flaxres.ResNet(**SMALL, scan_blocks=True)
    _, variables = flaxres.nnx.to_linen(unrolled)
    like = jax.eval_shape(linen.init, jax.random.key(0), IMAGES)
    stacked = flaxres.models.stage.stack_blocks(variables, like)
    scanned = flaxres.nnx.from_linen(linen, stacked)
    first, second = (forward(model, IMAGES) for model in (unrolled, scanned))
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        unrolled.layer1[2].bn1.mean[...], scanned.layer1.scanned.bn1.mean[1], rtol=1e-5, atol=1e-6
    )
    assert len(scanned.layer1) == 1
    with pytest.raises(IndexError, match=r"the other blocks are stacked in \.scanned"):
        scanned.layer1[1]
    with pytest.raises(InputError, match="create the network with scan_blocks=False"):
        scanned.layer1.scanned(IMAGES)
    scanned.layer1.scanned = nnx.clone(scanned).layer1.scanned  # not another layer
    with pytest.raises(InputError, match=r"layer1\.scanned\.conv1 is part of scanned blocks"):
        scanned.layer1.scanned.conv1 = nnx.Conv(4, 4, (3, 3), rngs=nnx.Rngs(0))


def test_keys_of_dropout_are_linens() -> None:
    options: dict[str, Any] = {"dropout": 0.5, "stochastic_depth": 0.5}
    model, linen = network(**options), flaxres.ResNet(**SMALL | options)
    assert model.rngs.count[...] == 0
    _, variables = flaxres.nnx.to_linen(model)

    @jax.jit
    def expected(variables: Any, key: jax.Array) -> Any:
        return linen.apply(
            variables, IMAGES, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )[0]

    keyed = nnx.jit(lambda model, key: model(IMAGES, rngs=key))
    key = jax.random.key(3)
    assert np.array_equal(keyed(model, key), expected(variables, key))
    assert model.rngs.count[...] == 0
    first, second = forward(model, IMAGES), forward(model, IMAGES)
    assert model.rngs.count[...] == 2
    assert not np.array_equal(first, second)
    with pytest.raises(InputError, match=r"layer2\.0 draws random numbers .* rngs=nnx.Rngs"):
        model.layer2[0](jnp.ones((1, 8, 8, 4)))
    model.eval()
    assert np.array_equal(forward(model, IMAGES), forward(model, IMAGES))


def test_remat_keeps_the_drop_rates_of_blocks_alone() -> None:
    blocks = [network(stochastic_depth=0.5, remat=remat).layer1[1] for remat in (False, True)]
    maps = np.random.default_rng(1).standard_normal((8, 8, 8, 4), np.float32)
    call = nnx.jit(lambda block, x, key: block(x, rngs=key))
    plain, remat = (call(block, maps, jax.random.key(0)) for block in blocks)
    np.testing.assert_allclose(plain, remat, rtol=1e-5)
    assert not np.allclose(plain, call(blocks[1], maps, jax.random.key(1)))


def test_arguments_are_checked() -> None:
    with pytest.raises(InputError, match=r"rngs \(=0\): ResNet draws .* give rngs=nnx.Rngs\(0\)"):
        flaxres.nnx.ResNet20(rngs=0)
    with pytest.raises(InputError, match="unknown model 'resnet51': did you mean resnet"):
        flaxres.nnx.create_model("resnet51", rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="did you mean num_classes"):
        flaxres.nnx.create_model("resnet50", num_clases=3, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="depth"):
        flaxres.nnx.ResNet18(depth=3, rngs=nnx.Rngs(0))


def test_named_networks_are_those_of_linen() -> None:
    names = [name for name in vars(named) if name.startswith("ResNet") and name != "ResNet"]
    assert len(names) == 12
    for name in names:
        small = {"depths": (1,), "widths": (16,), "num_classes": 2}
        linen = getattr(named, name)(**small)
        create = functools.partial(getattr(flaxres.nnx, name), **small)
        model = nnx.eval_shape(lambda create=create: create(rngs=nnx.Rngs(0)))
        assert dataclasses.astuple(model.linen) == dataclasses.astuple(linen)
        assert isinstance(model, flaxres.nnx.ResNet)


def test_importing_flaxres_does_not_import_nnx() -> None:
    program = "import sys, flaxres; assert 'flaxres.nnx' not in sys.modules; flaxres.nnx.ResNet"
    subprocess.run([sys.executable, "-c", program], check=True)
