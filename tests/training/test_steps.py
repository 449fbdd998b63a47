"""The steps: losses, exact counts, and one result on any number of devices and in any dtype."""

import functools
import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxres
from flaxres import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from flaxres.diagnostics.described import described_run, lowered
from flaxres.models.resnet import ResNet
from flaxres.ops.convolution import direct
from flaxres.training.losses import smooth_targets
from flaxres.training.mesh import data_mesh
from flaxres.training.run import Run
from flaxres.training.state import initial_state
from flaxres.training.steps import compiled_eval_step, eval_step
from tests.ops.native_cases import needs_compiler


def test_smoothed_targets_are_the_formula() -> None:
    expected = np.full((5, 7), 0.1 / 7) + 0.9 * np.eye(7)[np.arange(5)]
    np.testing.assert_allclose(
        smooth_targets(jnp.arange(5), 7, 0.1, jnp.float32), expected, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("logits", "top1", "top5"),
    [
        ([9, 1, 2, 3, 4, 5, 6], 1, 1),
        ([5, 9, 8, 7, 6, 4, 3], 0, 1),
        ([1, 9, 8, 7, 6, 4, 3], 0, 0),
        ([1] * 7, 0, 0),
        ([np.nan] * 7, 0, 0),
    ],
)
def test_ranks_count_ties_and_nan_against_the_network(
    logits: list[float], top1: int, top5: int
) -> None:
    class Fixed:
        def apply(self, variables: object, images: jax.Array) -> jax.Array:
            return jnp.asarray([logits] * len(images), jnp.float32)

    batch = {
        "image": np.zeros((2, 4, 4, 3), np.uint8),
        "label": np.zeros(2, np.int32),
        "weight": np.asarray([1, 0], np.float32),
    }
    sums = eval_step(DataConfig(), Fixed(), "float32")({}, batch)  # type: ignore[arg-type]
    assert (sums["top1"], sums["top5"], sums["examples"]) == (top1, top5, 1)


@pytest.mark.parametrize("devices", [1, 8])
def test_padding_weighs_nothing(devices: int) -> None:
    config = Config(
        model=ModelConfig("resnet20"),
        data=DataConfig(image_size=8, eval_size=8, eval_resize=8),
        train=TrainConfig(eval_batch_size=8),
    )
    model = ResNet(
        depths=(1,), block="basic", widths=(8,), num_classes=6, stem="small", stem_width=8
    )
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 8, 8, 3), np.uint8),
        "label": rng.integers(0, 6, 8).astype(np.int32),
        "position": np.arange(8, dtype=np.uint32),
        "weight": np.asarray([1, 1, 1, 1, 1, 0, 0, 0], np.float32),
    }
    step = compiled_eval_step(config, model, data_mesh(devices))
    sums, other = (
        step(variables, batch),
        step(
            variables,
            batch
            | {"image": np.where(batch["weight"][:, None, None, None] > 0, batch["image"], 7)},
        ),
    )
    assert float(sums["examples"]) == 5
    for key, value in sums.items():
        assert float(value) == pytest.approx(float(other[key]), rel=1e-6), key


def test_convolutions_on_cpu_are_given_to_all_cores() -> None:
    """YNNPACK's kernels, which take one core, are for products and sums only."""
    image, kernel = jnp.ones((4, 16, 16, 32)), jnp.ones((3, 3, 32, 32))
    program = (
        jax.jit(lambda x, w: direct(x, w, 1), compiler_options=flaxres.compiler_options())
        .lower(image, kernel)
        .compile()
        .as_text()
    )
    assert "convolution(" in program
    assert "__ynn_fusion" not in program


def same_result(
    precision: str, steps: int, groups: str, devices: str, *options: str
) -> dict[str, float]:
    """Runs `python -m tools.same_result` in a process of its own, whose JAX has the precision."""
    environment = os.environ | {"JAX_ENABLE_X64": str(int(precision == "float64"))}
    program = [
        sys.executable,
        "-m",
        "tools.same_result",
        "--precision",
        precision,
        "--steps",
        str(steps),
        "--groups",
        groups,
        "--devices",
        devices,
        "--quick",
        "--json",
        *options,
    ]
    done = subprocess.run(
        program,
        env=environment,
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "steps", "bound"), [("float32", 1, 1e-5), ("float64", 20, 1e-8)]
)
def test_the_same_run_on_1_2_4_and_8_devices(precision: str, steps: int, bound: float) -> None:
    figures = same_result(precision, steps, "none,8", "1,2,4,8")
    assert figures["runs"] == 8
    assert figures["ledger_differences"] == 0
    assert figures["largest_relative_difference"] < bound


@pytest.mark.slow
@needs_compiler
def test_native_code_gives_the_same_run_on_1_2_and_4_devices() -> None:
    """With statistics of all images, of groups within a device, and of groups on two devices."""
    figures = same_result("float32", 1, "none,8,32", "1,2,4", "--native")
    assert figures["runs"] == 9
    assert figures["ledger_differences"] == 0
    assert figures["largest_relative_difference"] < 1e-5


@pytest.mark.parametrize("resident", [True, False])
def test_one_program_serves_every_seed(resident: bool) -> None:
    """Else each run of a sweep would compile anew."""

    def programs(seed: int) -> list[str]:
        config = Config(
            ModelConfig("resnet20", depths=(1, 1, 1), dropout=0.1, stochastic_depth=0.1),
            DataConfig("digits", image_size=8, crop="centre", resident=resident, balance=1.0),
            AugmentConfig(shift=1, mixup=0.2, erase=0.1),
            OptimConfig(sam_rho=0.05),
            TrainConfig(64, steps=4, steps_per_dispatch=4 if resident else None, seed=seed),
        )
        run = described_run(config)
        first = jax.jit(functools.partial(initial_state, run.model, run.tx, config))
        number = jax.ShapeDtypeStruct((), jnp.uint32)
        return [lowered(run).as_text(), first.lower(number).as_text()]

    assert programs(0) == programs(1)


@needs_compiler
def test_each_of_several_devices_makes_native_calls_for_its_images() -> None:
    """They exchange sums alone. A part of a batch that they can't divide has no call."""
    flaxres.use_native_convolutions()

    def run(devices: int, accumulate: int = 1, **settings: Any) -> Run:
        return described_run(
            Config(
                ModelConfig("resnet20", depths=(2, 2, 2), **settings),
                DataConfig("digits", image_size=8, eval_size=8, eval_resize=8, crop="centre"),
                train=TrainConfig(64, steps=4, devices=devices, accumulate=accumulate),
            )
        )

    def evaluation(run: Run) -> Any:
        sides = {"image": (64, 8, 8, 3), "label": (64,), "weight": (64,)}
        batch = {
            name: jax.ShapeDtypeStruct(shape, {"image": jnp.uint8}.get(name, jnp.int32))
            for name, shape in sides.items()
        }
        return run.eval_step().lower(run.abstract_state().eval_variables, batch)

    def calls(program: Any) -> int:
        return int(program.as_text().count("custom_call @flaxres"))

    for lower in (lowered, evaluation):
        several = lower(run(4))
        assert 0 < calls(lower(run(1))) == calls(several)
        text = several.compile().as_text()
        assert "all-reduce" in text
        assert not re.search("all-gather|all-to-all|collective-permute|reduce-scatter", text)
    assert calls(lowered(run(4, accumulate=32, bn_group=2))) == 0
    scanned = {"scan_blocks": True, "remat": True, "bn_group": 16}
    several = lowered(run(4, **scanned))
    assert 0 < calls(lowered(run(1, **scanned))) == calls(several)
    several.compile()
