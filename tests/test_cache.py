"""The folders from which code is loaded."""

import os
import pathlib
import stat
import tempfile

import pytest

from flaxres.cache import private_folder

OTHER = 12345
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture(autouse=True)
def folders(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the cache and the folder for temporary files into the folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


def test_the_folder_is_the_users_alone(tmp_path: pathlib.Path) -> None:
    folder = private_folder("native")
    assert folder == tmp_path / "cache" / "flaxres" / "native"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_others_can_write_is_closed(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A group may write to folders above: it is often the user alone."""
    folder = tmp_path / "cache" / "flaxres" / "native"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o775)
    folder.chmod(0o770)
    assert private_folder("native") == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not capsys.readouterr().err


@root_only
@pytest.mark.parametrize("place", ["cache", "cache/flaxres/native", "cache/flaxres/native/a.so"])
def test_what_belongs_to_somebody_else_is_not_used(
    place: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As under sudo, with the home folder of the user."""
    folder = tmp_path / "cache" / "flaxres" / "native"
    folder.mkdir(parents=True)
    (folder / "a.so").touch()
    os.chown(tmp_path / place, OTHER, OTHER)
    used = private_folder("native")
    assert used == tmp_path / "temporary" / "flaxres-0" / "native"
    assert stat.S_IMODE(used.stat().st_mode) == 0o700
    line = capsys.readouterr().err
    assert line.startswith(f"flaxres: code is kept in {str(used)!r}, because ")
    assert f"{str(tmp_path / place)!r} belongs to user {OTHER}" in line
    assert line.count("\n") == 1


def test_a_folder_above_that_everybody_can_write_is_not_used(tmp_path: pathlib.Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    assert private_folder("native").is_relative_to(tmp_path / "temporary")
    (tmp_path / "cache").chmod(0o1777)
    assert private_folder("native").is_relative_to(tmp_path / "cache")


@root_only
def test_nothing_is_used_where_both_belong_to_somebody_else(tmp_path: pathlib.Path) -> None:
    for folder in ("cache", "temporary/flaxres-0"):
        (tmp_path / folder).mkdir()
        os.chown(tmp_path / folder, OTHER, OTHER)
    with pytest.raises(PermissionError, match=f"somebody else could change .* {OTHER}, and .*"):
        private_folder("native")
