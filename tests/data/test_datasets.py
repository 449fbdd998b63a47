"""Datasets are prepared on first use, but never by the functions that only open them."""

import pathlib
import shlex
from collections.abc import Callable

import pytest

from flaxres.cli import main
from flaxres.data.datasets import ensure_prepared, open_or_prepare
from flaxres.data.sources import NotPreparedError, describe, open_splits, verify
from flaxres.errors import InputError


def test_opening_prepares_nothing_and_names_the_command(tmp_path: pathlib.Path) -> None:
    folder = str(tmp_path)
    for opened in (
        lambda: open_splits("digits", ["train"], data_dir=folder),
        lambda: describe("digits", data_dir=folder),
        lambda: verify("digits", data_dir=folder),
    ):
        with pytest.raises(NotPreparedError, match=f"flaxres data prepare digits .*{folder}`"):
            opened()
    assert not list(tmp_path.iterdir())


def test_the_command_in_the_message_prepares_the_folder(
    photographs: Callable[..., pathlib.Path],
    tmp_path: pathlib.Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    root, folder = str(photographs(2, 2)), str(tmp_path / "prepared")
    with pytest.raises(NotPreparedError) as refused:
        open_splits("folder", ["train"], root, folder)
    command = shlex.split(str(refused.value).split("`")[1])
    assert command[0] == "flaxres"
    assert main(command[1:]) == 0, capfd.readouterr().err
    assert len(open_splits("folder", ["train"], root, folder)[0]) == 4


def test_the_first_use_prepares_and_says_so(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path)
    first, *_ = open_or_prepare("digits", ["train", "test"], data_dir=folder)
    assert "train: 1297 PNG\ntest: 500 PNG\n" in capfd.readouterr().err
    again, *_ = open_or_prepare("digits", ["train", "test"], data_dir=folder)
    ensure_prepared("digits", data_dir=folder)
    assert capfd.readouterr().err == ""
    assert again.digest == first.digest


def test_a_dataset_that_flaxres_can_not_prepare_is_refused(tmp_path: pathlib.Path) -> None:
    for opened in (open_or_prepare, open_splits):
        with pytest.raises(InputError, match="unknown dataset 'mnist'") as refused:
            opened("mnist", ["train"], data_dir=str(tmp_path))
        assert not isinstance(refused.value, NotPreparedError)
