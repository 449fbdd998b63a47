"""The documentation builds without a warning, and its Python and its notebook run.

Commands and links in it exist.
"""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import flaxres
from flaxres.data.builders import read_digits
from tools import module_table

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
LINKED = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md")), *PAGES]
# A line that exempts the next block, `<!-- not run: needs the Hugging Face hub -->`, and the block.
NOT_RUN = re.compile(r"<!-- not run: \S.* -->\s*```python\n.*?```", re.DOTALL)
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
README_LINES = 150


def runnable(path: pathlib.Path) -> list[str]:
    """Returns the Python blocks of a page, without the exempt ones."""
    return PYTHON.findall(NOT_RUN.sub("", path.read_text()))


def name_of(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


RUNNABLE = [path for path in (ROOT / "README.md", *PAGES) if runnable(path)]


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reference = (tmp_path / "site" / "reference" / "models" / "index.html").read_text()
    assert "A residual network" in reference


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: pathlib.Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="the extra docs is not installed")
    nbformat = pytest.importorskip("nbformat", reason="the extra docs is not installed")
    notebook = nbformat.read(ROOT / "docs" / "skip_connections.ipynb", 4)
    assert not any(cell.get("outputs") for cell in notebook.cells), (
        "outputs are not kept in the repository"
    )
    nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    assert "residual: loss" in printed


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_in_the_pages_exist(path: pathlib.Path) -> None:
    from flaxres.cli import COMMANDS
    from flaxres.cli._bench import BENCHES
    from flaxres.config.settings import SETTINGS

    text = path.read_text()
    for command, word in re.findall(
        r"\bflaxres (\w+)(?: (\w+))?",
        " ".join(re.findall(r"`[^`]+`|^flaxres .*$", text, re.MULTILINE)),
    ):
        assert command in COMMANDS, command
        assert command != "bench" or word in ("", *BENCHES), word
    for name in re.findall(r"--((?:model|data|augment|optim|train)\.[\w-]+)", text):
        if name not in ("data.name",):
            assert name.replace("-", "_") in SETTINGS, name
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(block, str(path), "exec")


def test_pages_have_python_to_run() -> None:
    assert {
        "README.md",
        "docs/guide/models.md",
        "docs/guide/weights.md",
        "docs/guide/backbone.md",
    } <= set(map(name_of, RUNNABLE))


@pytest.mark.slow
@pytest.mark.parametrize("path", RUNNABLE, ids=name_of)
def test_the_python_of_a_page_runs(
    path: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs all blocks in one namespace, in their order."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in runnable(path):
        exec(compile(block, name_of(path), "exec"), namespace)


def test_the_tutorial_writes_the_digits(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = ROOT / "docs/tutorial.md"
    exec(compile(runnable(path)[0], name_of(path), "exec"), {})
    digits, labels, test = read_digits()
    for i in (0, 1042):
        written = Image.open(f"digits/{'val' if test[i] else 'train'}/{labels[i]}/{i}.png")
        shrunk = np.asarray(written.resize((8, 8)), float)
        # Enlarging and shrinking blurs.
        assert np.abs(shrunk - digits[i] / 16 * 255).mean() < 20


def test_the_table_of_modules_is_that_of_the_docstrings() -> None:
    assert module_table.PAGE.read_text(encoding="utf-8") == module_table.page(), (
        "run python -m tools.module_table"
    )


def test_the_table_of_agreement_has_every_name() -> None:
    rows = re.findall(r"^\| (\w+) \|", (ROOT / "benchmarks/PARITY.md").read_text(), re.MULTILINE)
    names = flaxres.list_models()
    assert rows[1:] == names, (
        f"run python -m benchmarks.parity NAME --write for {set(rows[1:]) ^ set(names)}"
    )


@pytest.mark.parametrize("page", ["README.md", "docs/guide/models.md"])
def test_pages_have_the_number_of_models(page: str) -> None:
    numbers = re.findall(r"(\d+) names", (ROOT / page).read_text())
    count = str(len(flaxres.list_models()))
    assert count in numbers, f"{page}: write '{count} names' in place of one of {numbers}"


def test_the_readme_is_short() -> None:
    lines = len((ROOT / "README.md").read_text().splitlines())
    assert lines <= README_LINES, (
        f"README.md has {lines} lines: move what a newcomer does not need to docs/"
    )


@pytest.mark.parametrize("path", LINKED, ids=name_of)
def test_relative_links_point_to_files(path: pathlib.Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]+`", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file = target.partition("#")[0]
        if file and not re.match(r"[a-z]+:", file):
            assert (path.parent / file).exists(), f"{name_of(path)} links to {target}"
