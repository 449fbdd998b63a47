"""The recipe in PyTorch resumes to the bit, and refuses what is not its own."""

import dataclasses
import importlib.util
import pathlib
from typing import Any

import pytest

if importlib.util.find_spec("timm") is None:
    pytest.skip("PyTorch is not installed: pip install -e '.[parity]'", allow_module_level=True)

from benchmarks import torch_recipe
from flaxres import Config, InputError
from flaxres.config.files import load_config
from flaxres.training.run import Run, prepare_run

pytestmark = pytest.mark.extra


class KilledError(Exception):
    """Ends a training."""


@pytest.fixture
def run(data_dir: str) -> Run:
    config = load_config("digits")
    data = dataclasses.replace(config.data, data_dir=data_dir)
    model = dataclasses.replace(config.model, dtype="float32")
    train = dataclasses.replace(config.train, epochs=2)
    return prepare_run(dataclasses.replace(config, data=data, model=model, train=train))


def trained(run: Run, checkpoint: pathlib.Path | None) -> dict[str, Any]:
    splits = [torch_recipe.split(run, source, "cpu") for source in (run.train, run.evaluation)]
    return torch_recipe.train(run, splits, 0, False, checkpoint)


def test_a_killed_training_resumes_to_the_bit(
    run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(run, None)
    checkpoint = tmp_path / "out.json.seed0"
    monkeypatch.setattr(torch_recipe, "CHECKPOINT_STEPS", 6)
    save = torch_recipe.save

    def save_and_end(path: pathlib.Path, config: Config, *state: Any) -> None:
        save(path, config, *state)
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(torch_recipe, "save", save_and_end)
        with pytest.raises(KilledError):
            trained(run, checkpoint)
    resumed = trained(run, checkpoint)
    assert len(resumed["losses"]) == run.steps > 6
    assert resumed["losses"] == whole["losses"]
    assert resumed["top1"] == whole["top1"]
    # The last checkpoint is of the last step: nothing is left to train.
    assert trained(run, checkpoint)["losses"] == whole["losses"]
    optim = dataclasses.replace(run.config.optim, learning_rate=0.2)
    other = dataclasses.replace(run, config=dataclasses.replace(run.config, optim=optim))
    with pytest.raises(InputError, match=r"seed0' is of another config or device: delete it"):
        trained(other, checkpoint)
