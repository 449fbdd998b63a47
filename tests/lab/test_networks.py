"""The claims about trained CIFAR networks, of small depth and on digits; and their figures."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxres
from flaxres.lab import degradation, features, landscape, lesion, networks, paths
from flaxres.lab.report import Settings, conduct

SMALL: dict[str, Any] = {
    "depths": (2, 2),
    "widths": (8, 16),
    "stem": "small",
    "stem_width": 8,
    "block": "basic",
    "num_classes": 10,
}


def initialised(**attributes: Any) -> tuple[flaxres.ResNet, dict[str, Any]]:
    """Returns a small network and its initial variables."""
    model = flaxres.ResNet(**(SMALL | {"shortcut": "zero_pad"} | attributes))
    return model, model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def test_a_plain_network_has_the_same_layers_and_no_shortcut() -> None:
    (plain, variables), (residual, others) = initialised(shortcut="none"), initialised()
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, others)
    images = jnp.ones((2, 8, 8, 3))
    zero = jax.tree.map(jnp.zeros_like, variables["params"]["layer1"])
    silent = variables | {"params": variables["params"] | {"layer1": zero}}
    zeroed = others | {"params": others["params"] | {"layer1": zero}}
    # A residual block of zeros is the identity, a plain one returns zeros.
    passed = residual.apply(zeroed, images, features=True)
    np.testing.assert_array_equal(passed["stem"], passed["stage1"])
    assert not plain.apply(silent, images, features=True)["stage1"].any()
    scale = variables["params"]["layer1"]["0"]["bn2"]["scale"]
    assert (scale == 1).all(), "the last norm of a plain block must not start at zero"


def test_blocks_are_bypassed_one_by_one() -> None:
    model, variables = initialised()
    variables = variables | {"params": jax.tree.map(lambda leaf: leaf + 0.1, variables["params"])}
    images = np.random.default_rng(0).standard_normal((3, 8, 8, 3)).astype(np.float32)
    assert networks.removable(model, images, variables) == [True, True, False, True]
    logits = jax.jit(networks.bypassed(model))
    everything = np.ones(4, bool)
    np.testing.assert_allclose(
        logits(variables, images, everything), model.apply(variables, images), rtol=1e-4, atol=1e-4
    )
    without = everything.copy()
    without[1] = False
    layer = variables["params"]["layer1"] | {
        "1": jax.tree.map(jnp.zeros_like, variables["params"]["layer1"]["1"])
    }
    silenced = variables | {"params": variables["params"] | {"layer1": layer}}
    np.testing.assert_allclose(
        logits(variables, images, without), model.apply(silenced, images), rtol=1e-4, atol=1e-4
    )


def test_directions_have_the_norm_of_each_filter() -> None:
    _, variables = initialised()
    drawn = landscape.direction(jax.random.key(0), variables["params"])
    other = landscape.direction(jax.random.key(1), variables["params"])
    kernels = [
        tree["layer1"]["0"]["conv1"]["kernel"].reshape(-1, 8)
        for tree in (variables["params"], drawn, other)
    ]
    norms = [jnp.linalg.norm(kernel, axis=0) for kernel in kernels]
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-5)
    assert not drawn["bn1"]["scale"].any()
    assert not jnp.allclose(kernels[1], kernels[2])


def test_a_surface_that_overflows_is_a_steep_one() -> None:
    steps = np.linspace(-1, 1, landscape.POINTS)
    bowl = np.square(steps)[:, None] + np.square(steps)

    def holds(plain: np.ndarray, residual: np.ndarray) -> list[bool]:
        result = landscape.Result(steps, {"plain": plain, "residual": residual})
        return [claim.holds for claim in landscape.claims(result)]

    over = np.where(bowl > 0.1, np.nan, bowl + 1)
    assert holds(1 + 9 * bowl, bowl) == holds(over, bowl) == [True, True]
    assert holds(bowl, 1 + 9 * bowl) == holds(bowl, over) == [False, False]


@pytest.mark.slow
def test_the_claims_hold_of_trained_networks(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs the experiments that train networks; each network is trained once.

    They have 20 and 32 layers, where that shows a claim. On the surfaces around a plain network of
    32 layers, or after fewer epochs, claims depend on the rounding of the processor.
    """
    flaxres.use_native_convolutions()  # as `flaxres lab` does
    out = tmp_path_factory.mktemp("lab")
    settings = Settings(out, data_dir=str(out / "data"))
    monkeypatch.setattr(degradation, "DEPTHS", (20, 32))
    for module in (features, lesion, paths):
        monkeypatch.setattr(module, "DEEP", 32)
    monkeypatch.setattr(degradation, "SHADES", degradation.SHADES[:2])
    monkeypatch.setattr(landscape, "POINTS", 9)
    # Few blocks suffice for the stacks, whose claims are tested in test_stacks.py.
    monkeypatch.setattr(lesion, "BLOCKS", 40)
    monkeypatch.setattr(lesion, "BYPASSED", 20)
    monkeypatch.setattr(lesion, "TAKEN", lesion.TAKEN[:5])
    facts = {}
    for name, experiment in (
        ("degradation", degradation),
        ("paths", paths),
        ("features", features),
        ("landscape", landscape),
        ("lesion", lesion),
    ):
        facts[name] = conduct(name, experiment.EXPERIMENT, settings)
        assert (out / f"{name}.png").stat().st_size > 20_000
        claims = facts[name]["claims"][:1] if name == "lesion" else facts[name]["claims"]
        assert all(all(claim["holds"]) for claim in claims), claims
    for without in facts["lesion"]["results"][0]["without"].values():
        assert without.count(None) == 2  # the first blocks of the second and third stages
    assert len(list((out / "networks").iterdir())) == 6
