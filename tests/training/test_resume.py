"""A resumed run is the run that it was: its config, teacher, data and JAX's settings."""

import dataclasses
import functools
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import flaxres
from flaxres import Config
from flaxres.data.augment import (
    auto_augment,
    color_jitter,
    random_flip,
    random_shift,
    sample_keys,
)
from flaxres.data.autoaugment import policy
from flaxres.errors import InputError
from flaxres.training import provenance
from flaxres.training.provenance import JAX_SETTINGS, Progress, Provenance, from_json, to_json
from flaxres.training.resume import require_same_facts, start_or_resume
from flaxres.training.run import prepare_run
from tests.training.test_loop import digits


@pytest.fixture(scope="module")
def run(data_dir: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, pathlib.Path]:
    """A config, and the workdir of its finished run."""
    workdir = tmp_path_factory.mktemp("run")
    config = digits(data_dir, steps=2, tensorboard=False, eval_every_epochs=9.0, devices=1)
    flaxres.fit(config, workdir)
    return config, workdir


class Saved:
    """Checkpoints with a provenance, which restore nothing."""

    step = 2

    def __init__(self, provenance: Provenance) -> None:
        self.saved = to_json(provenance, Progress())

    def provenance(self) -> dict[str, Any]:
        return json.loads(json.dumps(self.saved))

    def restore(self, like: object) -> None:
        return None


@pytest.fixture
def origin(run: tuple[Config, pathlib.Path]) -> Provenance:
    return provenance.provenance(prepare_run(run[0]))


def test_without_config_json_the_checkpoint_knows_the_config(
    run: tuple[Config, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    config, workdir = run
    shutil.copytree(workdir, tmp_path / "copy")
    (tmp_path / "copy" / "config.json").unlink()
    other = dataclasses.replace(config, optim=dataclasses.replace(config.optim, weight_decay=0.123))
    for function in (flaxres.fit, flaxres.evaluate):
        with pytest.raises(InputError, match=r"optim\.weight_decay: .* -> 0\.123"):
            function(other, tmp_path / "copy")
        (tmp_path / "copy" / "config.json").unlink(missing_ok=True)
    assert flaxres.evaluate(config, tmp_path / "copy").examples == 500


@pytest.mark.parametrize("name", JAX_SETTINGS)
def test_settings_of_jax_that_change_bits_are_compared(
    name: str, run: tuple[Config, pathlib.Path], origin: Provenance
) -> None:
    assert origin.jax_settings is not None
    assert name in origin.jax_settings
    saved = dataclasses.replace(origin, jax_settings=origin.jax_settings | {name: "another"})
    with pytest.raises(InputError, match=f"{name}: another -> "):
        require_same_facts(run[0], saved, origin)


def test_the_bytes_of_the_teacher_are_compared(
    run: tuple[Config, pathlib.Path], origin: Provenance, tmp_path: pathlib.Path
) -> None:
    config = run[0]
    weights = tmp_path / "teacher.safetensors"
    distilled = dataclasses.replace(
        config,
        optim=dataclasses.replace(
            config.optim, distill_model="resnet20", distill_weights=str(weights)
        ),
    )
    with pytest.raises(InputError, match="distill_weights=.* can't be read"):
        provenance.provenance(prepare_run(distilled))
    weights.write_bytes(b"one")
    before = provenance.provenance(prepare_run(distilled))
    weights.write_bytes(b"two")
    after = provenance.provenance(prepare_run(distilled))
    with pytest.raises(InputError, match="the run's checkpoint was trained with a teacher of"):
        require_same_facts(distilled, before, after)


def test_other_versions_are_told_and_older_checkpoints_resume(
    run: tuple[Config, pathlib.Path], origin: Provenance
) -> None:
    prepared = prepare_run(run[0])
    older = dataclasses.replace(origin, packages=origin.packages | {"jaxlib": "0.1", "optax": "0"})
    lines: list[str] = []
    start_or_resume(prepared, Saved(older), origin, lines.append)  # type: ignore[arg-type]
    assert len(lines) == 1
    assert "goes on with other versions (jaxlib: 0.1 -> " in lines[0]
    content = to_json(origin, Progress())
    for name in ("jax_settings", "config", "teacher"):
        del content[name]
    saved, _ = from_json(content)
    require_same_facts(run[0], saved, origin)


@pytest.mark.parametrize(
    "draw",
    [
        random_flip,
        functools.partial(random_shift, pad=2),
        functools.partial(color_jitter, strength=(0.4, 0.4, 0.4, 0.1)),
        functools.partial(auto_augment, policy=policy("ta_wide"), fill=(0, 0, 0)),
    ],
)
def test_random_draws_do_not_depend_on_the_default_types(draw: Callable[..., Any]) -> None:
    with jax.enable_x64(True):
        keys = sample_keys(jax.random.key(0), jnp.arange(4, dtype=jnp.uint32))
        text = str(jax.make_jaxpr(draw)(keys, jnp.zeros((4, 8, 8, 3), jnp.uint8)))
    assert "bit_width=32" in text
    assert "bit_width=64" not in text
