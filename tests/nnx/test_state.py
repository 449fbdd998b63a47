"""The state of NNX networks: copies, checkpoints, weights, and devices."""

import copy
import pathlib
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

import flaxres
import flaxres.nnx
from flaxres import InputError
from flaxres.nnx import _definition
from tests.nnx.small import IMAGES, SMALL, filled, forward, network, same


def test_flax_splits_merges_copies_and_shows_a_network(
    model: flaxres.nnx.ResNet, capsys: pytest.CaptureFixture[str]
) -> None:
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    assert same(nnx.state(nnx.merge(graphdef, params, rest)), nnx.state(model))
    other = filled(flaxres.ResNet(**SMALL), 1)
    assert nnx.graphdef(other) == graphdef
    assert hash(nnx.graphdef(other)) == hash(graphdef)
    _definition.traced.cache_clear()
    assert nnx.graphdef(filled(flaxres.ResNet(**SMALL))) == graphdef
    assert nnx.graphdef(network(bn_momentum=0.5)) != graphdef
    for copied in (nnx.clone(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.fc.kernel is not model.fc.kernel
        assert same(nnx.state(copied), nnx.state(model))
        assert nnx.graphdef(copied) == graphdef
    nnx.display(model.layer1)
    assert "0=ResidualBlock(" in capsys.readouterr().out


def test_orbax_saves_a_network(model: flaxres.nnx.ResNet, tmp_path: pathlib.Path) -> None:
    state = nnx.to_pure_dict(nnx.state(model))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", state)
        checkpointer.wait_until_finished()
        other = filled(flaxres.ResNet(**SMALL), 1)
        assert not same(nnx.state(other), nnx.state(model))
        restored = checkpointer.restore(tmp_path / "saved", nnx.to_pure_dict(nnx.state(other)))
    nnx.update(other, restored)
    assert same(nnx.state(other), nnx.state(model))


PRE_ACTIVATION = {"depths": (1,), "widths": (8,), "stem": "small", "stem_width": 4}


@pytest.mark.parametrize(
    ("kind", "attributes", "head"),
    [(flaxres.ResNet, SMALL, "fc"), (flaxres.ResNetV2, PRE_ACTIVATION, "head.fc")],
)
def test_weights_travel_with_a_new_head(
    kind: Any, attributes: dict[str, Any], head: str, tmp_path: pathlib.Path
) -> None:
    linens = [kind(**attributes | {"num_classes": number}) for number in (3, 2, 4)]
    model, other, wider = map(filled, linens, range(3))
    new = nnx.Linear(8, 2, rngs=nnx.Rngs(1))
    (model if head == "fc" else model.head).fc = new
    file = tmp_path / "weights.safetensors"
    flaxres.nnx.save_weights(file, model)
    flaxres.nnx.load_weights(other, file)
    assert same(flaxres.nnx.to_linen(other)[1], flaxres.nnx.to_linen(model)[1])
    kernel = new.kernel[...]
    new.kernel.set_value(jnp.zeros((8, 2)))
    flaxres.nnx.load_weights(model, file)
    assert np.array_equal(new.kernel[...], kernel)
    with pytest.raises(InputError, match="don't fit the model"):
        flaxres.nnx.load_weights(wider, file)


def test_loaded_weights_keep_their_sharding(tmp_path: pathlib.Path) -> None:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, PartitionSpec(None, None, None, "data"))
    model, other = network(), filled(flaxres.ResNet(**SMALL), 1)
    flaxres.nnx.save_weights(tmp_path / "weights.safetensors", model)
    kernel = other.conv1.kernel
    kernel.set_value(jax.device_put(kernel[...], sharding))
    flaxres.nnx.load_weights(other, tmp_path / "weights.safetensors")
    assert kernel[...].sharding == sharding
    assert np.array_equal(kernel[...], model.conv1.kernel[...])


@pytest.mark.slow
def test_initialisation_is_sharded_and_the_same() -> None:
    """Uses a network of no other test, which is traced for the first time within a trace."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    attributes = SMALL | {"widths": (8, 16), "bn_momentum": 0.8}

    @nnx.jit
    def create() -> Any:
        model = flaxres.nnx.ResNet(**attributes, rngs=nnx.Rngs(0))
        state = nnx.state(model)
        for path, variable in nnx.to_flat_state(state):
            spread = path[-1] == "kernel" and variable.shape[-1] % 8 == 0
            axes = [None] * (variable.ndim - 1) + ["data" if spread else None]
            variable.set_metadata(out_sharding=tuple(axes))
        specs = nnx.get_partition_spec(state)
        nnx.update(model, jax.lax.with_sharding_constraint(state, specs))
        return model

    with jax.set_mesh(mesh):
        sharded = create()
    kernel = sharded.layer2[0].conv2.kernel[...]
    assert kernel.sharding.spec == PartitionSpec(None, None, None, "data")
    plain = flaxres.nnx.ResNet(**attributes, rngs=nnx.Rngs(0))
    assert same(flaxres.nnx.to_linen(sharded)[1], flaxres.nnx.to_linen(plain)[1])


def test_axis_name_shares_statistics_over_devices(model: flaxres.nnx.ResNet) -> None:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    whole, parts = nnx.clone(model), network(axis_name="data")
    specs = (PartitionSpec(), PartitionSpec("data"))

    @nnx.jit
    @nnx.shard_map(mesh=mesh, in_specs=specs, out_specs=PartitionSpec("data"))
    def over_devices(model: Any, images: jax.Array) -> Any:
        return model(images)

    np.testing.assert_allclose(
        over_devices(parts, IMAGES), forward(whole, IMAGES), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(parts.bn1.var[...], whole.bn1.var[...], rtol=1e-5)
