"""Every recipe loads, is valid, and its step lowers for eight devices at its real batch."""

import dataclasses
import pathlib

import pytest

from flaxres.config import recipes
from flaxres.config.check import check_devices
from flaxres.config.files import load_config
from flaxres.config.settings import flat
from flaxres.diagnostics.described import described_run, lowered
from flaxres.diagnostics.schedule import schedule

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.py"))
# Their datasets are the user's.
ANYONES = {"configs/folder.py", "configs/fashion_mnist/resnet9.py"}


def docstring(name: str) -> str:
    return (ROOT / name).read_text().split('"""')[1]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_loads_and_says_what_it_costs_and_gives(name: str) -> None:
    config, text = load_config(str(ROOT / name)), docstring(name)
    assert f"--config {name}" in text or name == "configs/digits.py"
    assert "xpected" in text
    if name.startswith("configs/imagenet"):
        assert "Cost:" in text
    check_devices(config, 8)
    if name in ANYONES:
        return
    run = described_run(config)
    steps = range(0, run.steps, max(run.steps // 50, 1))
    rates = [float(run.schedule(step)) for step in steps]
    assert max(rates) == pytest.approx(config.optim.learning_rate, rel=0.05)
    assert min(rates) >= 0


@pytest.mark.parametrize("name", recipes.names())
def test_the_list_of_recipes_says_what_each_gives(name: str) -> None:
    summary, expected, cost = recipes.describe(name)
    assert summary.endswith((".", ")."))
    assert expected
    assert bool(cost) == ("Cost" in recipes.docstring(name))


def test_no_two_recipes_are_the_same() -> None:
    names: dict[str, str] = {}
    for name in CONFIGS:
        settings = repr(sorted(flat(load_config(str(ROOT / name))).items()))
        assert settings not in names, f"{name} is {names.get(settings)}"
        names[settings] = name


def test_the_schedule_is_drawn(tmp_path: pathlib.Path) -> None:
    facts = schedule(
        load_config(str(ROOT / "configs/imagenet/composer_mild_resnet50.py")),
        str(tmp_path / "s.png"),
    )
    assert (tmp_path / "s.png").stat().st_size > 10_000
    assert facts["peak_rate"] == pytest.approx(2.048, rel=1e-3)
    assert facts["sizes"][-1] == 176


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ANYONES])
def test_a_step_lowers_for_eight_devices_at_its_real_batch(name: str) -> None:
    """Scans the blocks, since tracing a hundred of them tells nothing about the recipe."""
    config = load_config(str(ROOT / name))
    model = dataclasses.replace(config.model, scan_blocks=True)
    run = described_run(dataclasses.replace(config, model=model))
    assert run.mesh.size == 8
    text, side = lowered(run).as_text(), run.config.data.image_size
    count = len(run.train) if run.config.data.resident else run.config.train.batch_size
    assert f"tensor<{count}x{side}x{side}x3xui8>" in text
    assert "num_partitions = 8" in text
