"""The first lines of a run."""

import dataclasses
import re
from typing import Any

import jax.numpy as jnp
import pytest

from flaxres.config.files import load_config
from flaxres.training.run import prepare_run
from flaxres.training.state import State
from flaxres.training.summary import advice, shared_statistics


@pytest.mark.parametrize(
    ("devices", "group", "accumulate", "statistics", "said"),
    [
        (1, None, 1, {"bn1": 0}, ""),
        (2, None, 1, {"bn1": 0}, "of the whole batch over devices; .* divides the 32 images"),
        (2, 64, 1, {"bn1": 0}, "of 64 images over devices"),
        (2, 32, 1, {"bn1": 0}, ""),
        (2, 16, 1, {"bn1": 0}, ""),
        (2, 16, 2, {"bn1": 0}, ""),
        (4, 16, 2, {"bn1": 0}, "of 16 images over devices; .* divides the 8 images"),
        (8, 4, 4, {"bn1": 0}, "of 4 images over devices; .* divides the 2 images"),
        (8, 4, 8, {"bn1": 0}, ""),  # a device has one image, and no group of its own
        (2, None, 1, {}, ""),  # a network without batch norms
    ],
)
def test_norms_that_communicate_are_told(
    devices: int, group: int | None, accumulate: int, statistics: Any, said: str, data_dir: str
) -> None:
    config = load_config("digits")
    data = dataclasses.replace(config.data, data_dir=data_dir)
    model = dataclasses.replace(config.model, bn_group=group)
    train = dataclasses.replace(
        config.train, batch_size=64, eval_batch_size=64, devices=devices, accumulate=accumulate
    )
    run = prepare_run(dataclasses.replace(config, data=data, model=model, train=train))
    lines = shared_statistics(run, State(jnp.zeros((), jnp.int32), {}, statistics, ()))
    assert len(lines) == bool(said)
    if said:
        (line,) = lines
        assert re.search(said, line)


@pytest.mark.parametrize(
    ("batch", "step", "said"), [(1296, 0, False), (1304, 0, True), (1304, 7, False)]
)
def test_a_batch_of_more_images_than_there_are_is_told(
    batch: int, step: int, said: bool, data_dir: str
) -> None:
    config = load_config("digits")
    data = dataclasses.replace(config.data, data_dir=data_dir)
    train = dataclasses.replace(config.train, batch_size=batch, devices=1)
    run = prepare_run(dataclasses.replace(config, data=data, train=train))
    lines = advice(run, State(jnp.asarray(step, jnp.int32), {}, {}, ()))
    assert ["holds each of the 1,297 training images more than once" in line for line in lines] == (
        [True] if said else []
    )
