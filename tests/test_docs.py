"""The documentation builds without a warning, and its notebook runs."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md"))


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reference = (tmp_path / "site" / "reference" / "models" / "index.html").read_text()
    assert "A residual network" in reference


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: pathlib.Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="the extra docs is not installed")
    nbformat = pytest.importorskip("nbformat", reason="the extra docs is not installed")
    notebook = nbformat.read(ROOT / "docs" / "skip_connections.ipynb", 4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not kept in the repository"
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "residual: loss" in printed


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_the_pages_exist(path: pathlib.Path) -> None:
    from flaxres.cli import BENCHES, COMMANDS
    from flaxres.config.schema import SETTINGS

    text = path.read_text()
    for command, word in re.findall(r"\bflaxres (\w+)(?: (\w+))?", " ".join(re.findall(r"`[^`]+`|^flaxres .*$", text, re.MULTILINE))):
        assert command in COMMANDS, command
        assert command != "bench" or word in BENCHES, word
    for name in re.findall(r"--((?:model|data|augment|optim|train)\.[\w-]+)", text):
        if name not in ("data.name",):
            assert name.replace("-", "_") in SETTINGS, name
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(block, str(path), "exec")
