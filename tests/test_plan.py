"""Plans of runs on devices that are not attached."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from flaxres import InputError
from flaxres.cli import main
from flaxres.config.files import load_config
from flaxres.diagnostics import plan as plans
from flaxres.diagnostics.described import described_run
from flaxres.diagnostics.topology import DEVICES, GPUS, named, platform_of


@pytest.mark.parametrize(
    ("text", "name", "platform"),
    [
        ("8xH100", "h100:8", "cuda"),
        ("h200:8", "h200:8", "cuda"),
        ("V5e:16x16", "v5e:16x16", "tpu"),
        ("1xa100", "a100:1", "cuda"),
    ],
)
def test_topologies_are_named_as_people_write_them(text: str, name: str, platform: str) -> None:
    assert named(text) == name
    assert platform_of(name) == platform


@pytest.mark.parametrize("text", ["h100", "h100:2x4", "v5e:8", "16x16", "8xV5e"])
def test_other_topologies_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="topology"):
        platform_of(named(text))


def test_the_descriptions_of_gpus_are_those_of_their_data_sheets() -> None:
    for kind, facts in GPUS.items():
        assert facts["memory_bandwidth"] == pytest.approx(DEVICES[kind].bandwidth)
        assert facts["device_memory_size"] / 1e9 == pytest.approx(DEVICES[kind].gigabytes, rel=0.07)


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
