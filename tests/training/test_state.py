"""The first state, which is compiled with few optimisations on CPUs."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

import flaxres
from flaxres.config.schema import Config
from flaxres.training.mesh import data_mesh
from flaxres.training.state import create_state, initial_state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "attributes"),
    [("resnet20", {"depths": (1, 1, 1)}), ("seresnet18", {"stem": "small"})],
)
def test_it_has_the_bits_of_a_program_with_all_of_them(
    name: str, attributes: dict[str, object]
) -> None:
    model = flaxres.create_model(name, **attributes)
    config = Config()
    data = dataclasses.replace(config.data, image_size=64)
    config, tx = dataclasses.replace(config, data=data), optax.adamw(0.1)
    whole = jax.jit(
        lambda seed: initial_state(model, tx, config, seed),
        compiler_options={"xla_backend_optimization_level": 3},
    )
    seeded = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=3))
    ours = create_state(model, tx, seeded, data_mesh(1))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(whole(np.uint32(3))), strict=True):
        np.testing.assert_array_equal(a, b)
