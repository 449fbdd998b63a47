"""Plans of runs on devices that are not attached."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from flaxres import InputError
from flaxres.cli import main
from flaxres.config.files import load_config
from flaxres.diagnostics import plan as plans
from flaxres.diagnostics.described import described_run
from flaxres.diagnostics.topology import DEVICES, ENVIRONMENT, named, platform_of


@pytest.mark.parametrize(
    ("text", "name", "platform"),
    [
        ("8xH100", "h100:8", "cuda"),
        ("h200:8", "h200:8", "cuda"),
        ("V5e:16x16", "v5e:16x16", "tpu"),
        ("1xa100", "a100:1", "cuda"),
        ("8xRTX3090", "rtx3090:8", "cuda"),
        ("TPU7x:2x2x1", "tpu7x:2x2x1", "tpu"),
    ],
)
def test_topologies_are_named_as_people_write_them(text: str, name: str, platform: str) -> None:
    assert named(text) == name
    assert platform_of(name) == platform


@pytest.mark.parametrize("text", ["h100", "h100:2x4", "v5e:8", "16x16", "8xV5e"])
def test_other_topologies_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="topology"):
        platform_of(named(text))


@pytest.mark.parametrize(
    ("kind", "dtype", "teraflops"),
    [
        ("v100", "float16", 125), ("v100", "bfloat16", 15.7), ("v100", "float32", 15.7),
        ("h100", "bfloat16", 989), ("h100", "float16", 989), ("h100", "float32", 495),
        ("v5e", "float32", 197),
    ],
)  # fmt: skip
def test_arithmetic_has_the_rate_of_its_dtype(kind: str, dtype: str, teraflops: float) -> None:
    assert DEVICES[kind].peak_of(dtype) == pytest.approx(teraflops * 1e12)


def test_a_plan_in_float64_is_refused() -> None:
    config = load_config("imagenet/resnet50")
    model = dataclasses.replace(config.model, dtype="float64")
    with pytest.raises(InputError, match="float64.*float32, bfloat16 and float16"):
        plans.plan(dataclasses.replace(config, model=model), "h200:1")


# What JAX calls a device is a core on v3 and tpu7x, a chip on the others.
COUNTS = """
from flaxres.diagnostics.topology import absent_devices
sizes = {"v3:2x2": 8, "v4:2x2x1": 4, "v5p:2x2x1": 4, "v5e:2x2": 4, "tpu7x:2x2x1": 8}
for name, size in sizes.items():
    assert absent_devices(name).size == size, name
"""


@pytest.mark.slow
def test_described_tpus_have_the_devices_of_real_ones() -> None:
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install 'flaxres[tpu]'")
    environment = os.environ | ENVIRONMENT["tpu"] | {"JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", COUNTS], env=environment, check=True)


def test_rates_follow_from_traffic_and_arithmetic() -> None:
    """ResNet-50 has 4.09 billion multiply-accumulates at 224 pixels (torchvision's table)."""
    run = described_run(load_config("imagenet/resnet50"))
    found = plans.rates(run, DEVICES["h200"], 8, 360.3)
    assert found["traffic_bound"] == pytest.approx(8 * 4.8e12 / 360.3e6)
    assert found["arithmetic_bound"] == pytest.approx(8 * 989e12 / (6 * 4.089e9), rel=0.01)
    assert found["expected"] == pytest.approx(plans.MEASURED_SHARE * found["traffic_bound"])
    assert found["epochs"] == pytest.approx(run.config.train.epochs, rel=0.001)
    assert found["hours"] == pytest.approx(found["images"] / found["expected"] / 3600)
    slow = plans.rates(run, DEVICES["h200"], 8, 1.0)  # of bytes there are next to none
    assert slow["expected"] == pytest.approx(plans.MEASURED_SHARE * slow["arithmetic_bound"])


def test_a_plan_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two devices of this machine stand for absent ones, whose compiler may not be there."""
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Auto,))
    monkeypatch.setattr(plans, "absent_devices", lambda topology: mesh)
    monkeypatch.setattr("flaxres.diagnostics.topology.ENVIRONMENT", {"cuda": {}, "tpu": {}})
    words = ["plan", "--config", "configs/digits.py", "--topology", "2xH100"]
    words += ["--train.batch-size", "64", "--model.depths", "1", "1", "1"]
    words += ["--price", "2.5", "--decode", "1000"]
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["fits"] == 1
    assert facts["dollars"] == pytest.approx(facts["hours"] * 2 * 2.5)
    assert facts["cores"] == np.ceil(facts["expected"] / 1000)
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "h100:2: 80 GB, 3.35 TB/s and 989 TFLOP/s (bfloat16) each" in text
    assert "it fits" in text
    assert "images/s, by the traffic of the memory" in text or "by the arithmetic" in text
    assert "the run costs $" in text
    monkeypatch.setattr("flaxres.diagnostics.topology.DEVICES", {"h100": DEVICES["v100"]})
    assert main([*words, "--model.dtype", "bfloat16"]) == 0
    assert (
        "bfloat16 is computed in float32 there: set model.dtype=float16" in capsys.readouterr().out
    )
