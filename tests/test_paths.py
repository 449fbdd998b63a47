"""Home folders in the paths that people give."""

import pathlib

import pytest

import flaxres
from flaxres.data.folders import require_folder
from flaxres.errors import InputError
from flaxres.paths import expanded


def test_a_home_folder_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/runs/a~b") == tmp_path / "runs" / "a~b"
    assert expanded("./~") == pathlib.Path("~")


def test_a_user_who_does_not_exist_is_an_ordinary_error() -> None:
    path = "~no such user/w.safetensors"
    with pytest.raises(InputError, match=r"'~no such user/w.safetensors' do not exist"):
        flaxres.load_weights(path, flaxres.ResNet20())
    with pytest.raises(InputError, match=r"data.source='~no such user/w.safetensors' is not a"):
        require_folder(path)
