"""The package as a whole: cheap import, imports that point one way, names that exist."""

import ast
import graphlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import flaxres
from flaxres.errors import TRAINER_PACKAGES

ROOT = pathlib.Path(__file__).parents[1]
SERVING = ROOT / "flaxres" / "serving"
HEAVY = (
    "tensorflow",
    "tensorflow_datasets",
    "grain",
    "tyro",
    "matplotlib",
    "orbax",
    "tensorboardX",
    "PIL",
    "simplejpeg",
)
# Package -> packages and modules of flaxres that it may import.
ROOMS = {
    "ops": "cache errors ops",
    "models": "errors ops models",
    "serving": "serving",
    "data": "cache errors paths printing remote serving data",
    "config": "errors paths models data config",
    "weights": "errors paths models data weights",
    "nnx": "errors ops models weights nnx",
    "training": "_version cache errors heap paths printing remote figures ops models data "
    "config weights training",
    "inference": "errors paths figures printing ops models data config weights training serving "
    "inference",
    "diagnostics": "errors figures models data config inference training diagnostics",
    "report": "errors paths figures printing data config inference training diagnostics report",
    "lab": "errors printing figures models data config weights training inference lab",
}
STEP = (
    *("augmentation", "dispatch", "gradients", "losses", "mesh", "optimizers", "state", "steps"),
    "xla",
)
COMPUTE = [
    *(
        "models/**/*.py",
        "config/*.py",
        "config/sections/*.py",
        "ops/*.py",
        "nnx/_*[!_].py",
        "nnx/layers.py",
        "nnx/named.py",
        "nnx/network.py",
        "nnx/networks.py",
        "nnx/conversion.py",
        "cache.py",
        "errors.py",
        "paths.py",
        "printing.py",
        "data/augment.py",
        "data/autoaugment.py",
        "data/choices.py",
        "data/mixing.py",
        "data/operations.py",
        "data/balance.py",
        "data/order.py",
        "data/quantiles.py",
        "data/__init__.py",
        "training/__init__.py",
    ),
    *(f"training/{name}.py" for name in STEP),
]


def imports(path: pathlib.Path) -> set[str]:
    """Dotted names of the modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # An export copies `serving`, where it is no part of flaxres.
            assert node.level == 0 or path.parent == SERVING, f"{path} imports relatively"
            parts = ["flaxres", "serving"] if node.level else []
            module = ".".join([*parts, *([node.module] if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    for path in (ROOT / "flaxres" / room).glob("**/*.py"):
        used = {name.split(".")[1] for name in imports(path) if name.startswith("flaxres.")}
        allowed = set(ROOMS[room].split())
        assert used <= allowed, f"{path} imports {used - allowed}"


def test_the_server_needs_jax_pillow_and_at_most_waitress() -> None:
    """An export copies its modules, so they import each other relatively, and flaxres nowhere."""
    needed = {"jax", "numpy", "PIL", "waitress"}
    for path in SERVING.glob("*.py"):
        assert not re.search(r"^\s*(from|import) flaxres", path.read_text(), re.MULTILINE), path
        tops = {name.partition(".")[0] for name in imports(path)} - {"flaxres", "jaxtyping"}
        assert tops <= needed | sys.stdlib_module_names, path


def module_file(name: str) -> pathlib.Path | None:
    """The file of a module of ours, None for what is no module."""
    path = ROOT / name.replace(".", "/")
    return next(
        (file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None
    )


def test_no_modules_import_each_other() -> None:
    """Counts imports anywhere in a file: also in functions and under TYPE_CHECKING."""
    files = set((ROOT / "flaxres").rglob("*.py")) - {ROOT / "flaxres" / "__init__.py"}
    graph = {path: {module_file(name) for name in imports(path)} & files - {path} for path in files}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        circle = " -> ".join(path.stem for path in reversed(error.args[1]))
        pytest.fail(f"modules import each other: {circle}")


def test_the_compute_path_needs_only_jax_flax_and_optax() -> None:
    files = {path for pattern in COMPUTE for path in (ROOT / "flaxres").glob(pattern)}
    assert len(files) >= 14
    for path in files:
        for name in imports(path):
            top = name.split(".")[0]
            if top == "flaxres" and name != "flaxres":
                assert module_file(name) in {None, *files}, f"{path} imports {name}"
            else:
                assert (
                    top
                    # jax needs SciPy itself.
                    in {"flaxres", "jax", "jaxlib", "flax", "optax", "jaxtyping", "numpy", "scipy"}
                    | sys.stdlib_module_names
                ), f"{path} imports {name}"


def test_the_compute_path_runs_where_nothing_else_is_installed() -> None:
    program = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import flaxres.training.steps, flaxres.training.optimizers, flaxres.training.state
"""
    subprocess.run([sys.executable, "-c", program], check=True)


ABSENT = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {sorted(TRAINER_PACKAGES)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def test_networks_and_safetensors_need_no_extra(tmp_path: pathlib.Path) -> None:
    program = f"""{ABSENT}
import flaxres, jax, jax.numpy as jnp, numpy as np
model = flaxres.ResNet50(num_classes=3, depths=(1, 1, 1, 1))
variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
flaxres.save_weights("w.safetensors", variables, model)
loaded = flaxres.load_weights("w.safetensors", model)
same = jax.tree.map(lambda a, b: np.array_equal(a, b), dict(variables), loaded)
assert jax.tree.all(same)
assert flaxres.Config().optim.learning_rate == 0.1
"""
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


MISSING = [
    ("sys.exit(flaxres.cli.main(['train']))", "flaxres: this needs"),
    ("flaxres.fit", "flaxres.fit: this needs"),
]


@pytest.mark.parametrize(("code", "message"), MISSING)
def test_a_missing_extra_is_named_with_its_command(
    code: str, message: str, tmp_path: pathlib.Path
) -> None:
    program = f"{ABSENT}\nimport flaxres.cli\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    line = done.stderr.strip().splitlines()[-1]
    assert message in line
    assert line.endswith(
        "which is not installed: in the clone of flaxres, pip install -e '.[train]'"
    )


def test_the_lock_has_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {
        re.split(r"[^\w-]", requirement)[0].lower().replace("_", "-")
        for requirement in [*project["dependencies"], *project["optional-dependencies"]["train"]]
    }
    locked = set(
        re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    )
    assert wanted <= {name.lower().replace("_", "-") for name in locked}


def test_importing_flaxres_loads_nothing_heavy() -> None:
    program = (
        "import sys, json, flaxres; "
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    loaded = json.loads(
        subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True
        ).stdout
    )
    assert not set(HEAVY) & set(loaded)


def test_help_and_an_import_load_neither_jax_nor_flax() -> None:
    program = (
        "import sys, flaxres; from flaxres.cli import main; "
        "assert main(['--help']) == main(['--version']) == 0; assert main(['trian']) == 2; "
        "assert not {'jax', 'flax', 'numpy', 'tyro'} & set(sys.modules); "
        "assert flaxres.models and flaxres.ops and flaxres.ResNet50; "
        "assert 'flax' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_tensorboard_loads_no_pytorch(tmp_path: pathlib.Path) -> None:
    """Which takes a second, where it is installed."""
    program = """
import pathlib, sys
from flaxres.config.schema import Config
from flaxres.training.metrics import Writer
writer = Writer(pathlib.Path(sys.argv[1]), 0, Config())
assert "tensorboardX" not in sys.modules
writer.write(1, 0.0, {"loss": 1.0})
writer.close()
assert "tensorboardX" in sys.modules and not {"torch", "boto3"} & set(sys.modules)
assert len(list(pathlib.Path(sys.argv[1]).glob("events.*"))) == 1
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there() -> None:
    for name in dir(flaxres):
        assert getattr(flaxres, name) is not None
    with pytest.raises(AttributeError, match="nothing_such"):
        flaxres.nothing_such  # noqa: B018


def test_every_name_in_the_readme_exists() -> None:
    text = (ROOT / "README.md").read_text()
    for name in set(re.findall(r"flaxres\.([A-Za-z_]\w*)", text)) - {"git"}:
        assert hasattr(flaxres, name) or (ROOT / "flaxres" / name).exists(), (
            f"README names flaxres.{name}"
        )
    for path in set(re.findall(r"\b(?:configs|benchmarks|docs)/[\w/.-]+\w", text)):
        assert (ROOT / path).exists(), f"README names {path}"
