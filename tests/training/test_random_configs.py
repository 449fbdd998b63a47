"""Random configs give one result on 1 and 8 devices, and mistakes are refused in one line."""

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from flaxres.config.check import check
from flaxres.config.kinds import fits
from flaxres.config.schema import Config
from flaxres.config.settings import SETTINGS, flat
from flaxres.data.datasets import open_or_prepare
from flaxres.errors import InputError
from tools import broken, drawn

ROOT = pathlib.Path(__file__).parents[2]


def random_configs(*words: str) -> dict[str, Any]:
    """Runs `python -m tools.random_configs` in a process of its own, whose JAX has float64."""
    program = [sys.executable, "-m", "tools.random_configs", *words, "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run(program, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", drawn.drawn_names())
def test_every_setting_is_drawn_by_its_rule(name: str) -> None:
    rng, declared = np.random.default_rng(0), SETTINGS[name]
    values = [drawn.value(rng, name) for _ in range(50)]
    assert set(map(str, values)) - {str(flat(Config())[name])}, "only the default is drawn"
    for value in values:
        assert fits(value, declared.kind)
        assert declared.facts.rule is None or declared.facts.rule.holds(value)


def test_many_draws_pass_the_checks() -> None:
    passed = 0
    for number in range(200):
        with contextlib.suppress(InputError):
            check(drawn.draw(np.random.default_rng(number), "data"))
            passed += 1
    assert passed > 20


def test_configs_survive_their_settings() -> None:
    config = drawn.draw(np.random.default_rng(0), "data")
    settings = json.loads(json.dumps(drawn.changes(config)))
    assert drawn.of_values(settings) == config


@pytest.mark.slow
def test_random_configs_give_one_result_on_1_and_8_devices() -> None:
    figures = random_configs("valid", "--count", "3")
    assert figures["failures"] == 0, figures
    assert figures["largest_difference"] < 1e-8


@pytest.mark.parametrize("kind", range(len(broken.MISTAKES)))
def test_mistakes_are_refused_in_one_line(kind: int, tmp_path: pathlib.Path, data_dir: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        open_or_prepare("digits", ["test"], data_dir=data_dir)
    (tmp_path / "data").symlink_to(data_dir)
    for turn in range(3):
        for number in (2 * kind, 2 * kind + 1):
            given = broken.draw(0, number + 2 * len(broken.MISTAKES) * turn)
            fault, _ = broken.refused(given, tmp_path)
            assert not fault, given.what


@pytest.mark.slow
def test_many_mistakes_are_refused_in_one_line() -> None:
    assert random_configs("invalid", "--count", "200", "--seed", "1")["failures"] == 0
