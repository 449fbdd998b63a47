"""The wheel and the sdist hold what they must, and the wheel works alone."""

import json
import pathlib
import subprocess
import sys
import tarfile
import tomllib

import pytest
from PIL import Image

from flaxres.config import recipes

ROOT = pathlib.Path(__file__).parents[1]


def test_every_package_of_the_tree_is_in_the_wheel() -> None:
    named = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    code = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "flaxres").rglob("*.py")
    }
    shipped = {
        ".".join(("flaxres", *path.parent.relative_to(ROOT).parts))
        for path in (ROOT / "configs").rglob("*.py")
    }
    assert named == code | shipped


def test_every_other_file_of_the_package_is_in_the_wheel() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    package = ROOT / "flaxres"
    files = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    others = {name for name in files if not name.endswith((".py", ".pyc", ".so"))}
    declared = {pattern: set(package.glob(pattern)) for pattern in tool["package-data"]["flaxres"]}
    assert all(declared.values()), declared  # no pattern is left from a file that is gone
    assert others == {str(path.relative_to(package)) for path in set().union(*declared.values())}


@pytest.fixture
def wheel(tmp_path: pathlib.Path) -> pathlib.Path:
    """Returns a folder into which the wheel of this checkout is installed."""
    pip, place = [sys.executable, "-m", "pip"], tmp_path / "site"
    build = [*pip, "wheel", "-q", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True)
    (built,) = tmp_path.glob("*.whl")
    install = [*pip, "install", "-q", "--no-deps", "--target", str(place), str(built)]
    subprocess.run(install, check=True)
    return place


@pytest.mark.slow
def test_the_wheel_alone_trains_predicts_and_exports(
    wheel: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()

    def flaxres_of_the_wheel(*words: str) -> str:
        program = (
            f"import sys; sys.path.insert(0, {str(wheel)!r}); import flaxres.cli; "
            "sys.exit(flaxres.cli.main())"
        )
        command = [sys.executable, "-c", program, *words]
        done = subprocess.run(command, cwd=empty, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert set(json.loads(flaxres_of_the_wheel("configs", "--json"))) == set(recipes.names())
    options = ["--data.data-dir", str(tmp_path / "data"), "--train.steps", "3"]
    options += ["--model.depths", "1", "1", "1"]
    flaxres_of_the_wheel("train", "--config", "digits", "--workdir", "run", *options)
    assert json.loads((empty / "run" / "summary.json").read_text())["step"] == 3
    Image.new("L", (8, 8), 128).save(empty / "digit.png")
    (ranked,) = json.loads(
        flaxres_of_the_wheel("predict", "--workdir", "run", "--json", "digit.png")
    ).values()
    assert len(ranked) == 5
    report = json.loads(
        flaxres_of_the_wheel("export", "--workdir", "run", "--out", "exported", "--json")
    )
    assert report["examples"] == 500
    served = empty / "exported" / "serving"
    assert {"page.html", "main.py", "crop.py"} <= {path.name for path in served.iterdir()}
    assert {path.name for path in empty.iterdir()} == {"run", "digit.png", "exported"}


@pytest.mark.slow
def test_the_sdist_holds_every_file_of_the_repository(tmp_path: pathlib.Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    build = [sys.executable, "-m", "build", "--sdist", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    about_the_repository = (".ci/", ".git", ".pre-commit")
    assert {name for name in tracked if not name.startswith(about_the_repository)} <= packed
