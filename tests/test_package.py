"""What the package promises as a whole: cheap import, imports that point one way, names that exist."""

import ast
import json
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import flaxres

ROOT = pathlib.Path(__file__).parents[1]
HEAVY = ("tensorflow", "tensorflow_datasets", "grain", "tyro", "matplotlib", "orbax", "tensorboardX", "PIL", "simplejpeg")
ROOMS = {
    "ops": {"cache", "errors", "ops"},
    "models": {"errors", "ops", "models"},
    "data": {"cache", "errors", "data"},
    "weights": {"errors", "models", "data", "weights"},
    "training": {"errors", "figures", "ops", "models", "data", "weights", "training"},
}
COMPUTE = [
    *(
        "models/*.py",
        "ops/*.py",
        "cache.py",
        "errors.py",
        "data/augment.py",
        "data/autoaugment.py",
        "data/choices.py",
        "data/order.py",
        "data/__init__.py",
        "training/__init__.py",
    ),
    *(f"training/{name}.py" for name in ("config", "optimizers", "state", "steps", "mesh", "xla")),
]


def imports(path: pathlib.Path) -> set[str]:
    """Dotted names of the modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    for path in (ROOT / "flaxres" / room).glob("**/*.py"):
        used = {name.split(".")[1] for name in imports(path) if name.startswith("flaxres.")}
        assert used <= ROOMS[room], f"{path} imports {used - ROOMS[room]}"


def module_file(name: str) -> pathlib.Path | None:
    """The file of a module of ours, None for what is no module."""
    path = ROOT / name.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)


def test_the_compute_path_needs_only_jax_flax_and_optax() -> None:
    files = {path for pattern in COMPUTE for path in (ROOT / "flaxres").glob(pattern)}
    assert len(files) >= 14
    for path in files:
        for name in imports(path):
            top = name.split(".")[0]
            if top == "flaxres" and name != "flaxres":
                assert module_file(name) in {None, *files}, f"{path} imports {name}"
            else:
                assert top in {"flaxres", "jax", "flax", "optax", "numpy"} | sys.stdlib_module_names, f"{path} imports {name}"


def test_the_compute_path_runs_where_nothing_else_is_installed() -> None:
    program = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import flaxres.training.steps, flaxres.training.optimizers, flaxres.training.state, flaxres.training.mesh
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_lock_has_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[^\w-]", requirement)[0].lower().replace("_", "-") for requirement in project["dependencies"]}
    locked = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert wanted <= {name.lower().replace("_", "-") for name in locked}


def test_importing_flaxres_loads_nothing_heavy() -> None:
    program = "import sys, json, flaxres; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)
    assert not set(HEAVY) & set(loaded)


def test_every_public_name_is_there() -> None:
    for name in dir(flaxres):
        assert getattr(flaxres, name) is not None
    with pytest.raises(AttributeError, match="nothing_such"):
        flaxres.nothing_such  # noqa: B018


@pytest.mark.slow
def test_the_readmes_python_runs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it in one namespace, in order; the block that needs the hub is left to the tests of the hub."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 6
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks:
        if "load_pretrained" not in block:
            exec(compile(block, "README.md", "exec"), namespace)
    assert float(namespace["value"]) > 0  # type: ignore[arg-type]


def test_every_name_in_the_readme_exists() -> None:
    text = (ROOT / "README.md").read_text()
    for name in set(re.findall(r"flaxres\.([A-Za-z_]\w*)", text)) - {"git"}:
        assert hasattr(flaxres, name) or (ROOT / "flaxres" / name).exists(), f"README names flaxres.{name}"
    for path in set(re.findall(r"\b(?:configs|benchmarks|docs)/[\w/.-]+\w", text)):
        assert (ROOT / path).exists(), f"README names {path}"
