"""The training at rising learning rates, `flaxres bench lr`."""

import dataclasses
import pathlib

import numpy as np
import pytest

from flaxres.cli import main
from flaxres.diagnostics.range_test import Found, range_test, smoothed
from flaxres.errors import InputError
from tests.training.test_loop import digits


def test_the_picture_and_two_rates(
    data_dir: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "bench lr --config digits --model.depths 1 1 1 --train.devices 1 --steps 40 --to 100"
    folders = ["--data.data-dir", data_dir, "--out", str(tmp_path / "lr.png")]
    assert main([*words.split(), *folders]) == 0
    lines = dict(line.partition(": ")[::2] for line in capsys.readouterr().out.splitlines()[-3:])
    assert 1e-5 < float(lines["steepest_fall"]) < 10
    assert 1e-5 < float(lines["a_tenth_of_the_lowest"]) < 10
    assert (tmp_path / "lr.png").read_bytes()[:4] == b"\x89PNG"


def test_rates_rise_by_a_factor_and_the_first_steps_are_those_of_training(data_dir: str) -> None:
    config = digits(data_dir)
    # All rates are 0 but for rounding, so the losses are those of the first weights.
    found = range_test(config, 20, 1e-12, 1e-10)
    np.testing.assert_allclose(found.rates, np.geomspace(1e-12, 1e-10, 20), rtol=1e-4)
    still = dataclasses.replace(config.optim, learning_rate=0.0)
    again = range_test(dataclasses.replace(config, optim=still), 20, 1e-12, 1e-10)
    np.testing.assert_array_equal(found.losses, again.losses)
    assert abs(found.losses.mean() - np.log(10)) < 1


def test_the_steepest_fall_is_before_the_lowest_loss() -> None:
    rates = np.geomspace(1e-4, 1.0, 81)
    losses = 3 - 2 / (1 + (1e-2 / rates) ** 2) + 50 * np.maximum(rates - 0.1, 0) ** 2
    found = Found(rates, losses, losses)
    assert found.steepest == pytest.approx(1e-2, rel=0.2)
    assert 0.05 < found.lowest < 0.2


def test_the_average_has_no_bias_towards_its_start() -> None:
    np.testing.assert_allclose(smoothed(np.full(30, 2.5)), 2.5)
    assert smoothed(np.array([1.0, 3.0]))[1] == pytest.approx((0.95 * 1 + 3) / 1.95)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--from 1 --to 0.1", "from 1 to 0.1: the rule is 0 < from < to"),
        ("--steps 3", "--steps=3: the rule is >= 20"),
        ("--steps many", "--steps='many': the rule is a whole number"),
        ("--to x", "--to='x': the rule is a number"),
    ],
)
def test_mistakes_are_refused(
    options: str, message: str, data_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "lr", "--config", "digits", "--data.data-dir", data_dir, *options.split()]
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_a_loss_that_is_not_finite_at_once_is_refused(data_dir: str) -> None:
    with pytest.raises(InputError, match="start lower with --from"):
        range_test(digits(data_dir), 20, 1e38, 3e38)
