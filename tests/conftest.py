"""Eight CPU devices for every test, and a folder of prepared datasets for every worker."""

import os
import shutil
import tempfile

from benchmarks import quick

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = quick.flags(level=1, devices=8)
os.environ.setdefault("JAX_ENABLE_X64", "0")
# Many tests compile the same programs, and each operation outside of a program is one too. Each is
# compiled once, by the first worker or process; the workers inherit the folder.
os.environ["FLAXRES_TESTS_COMPILED"] = os.environ.get("FLAXRES_TESTS_COMPILED") or tempfile.mkdtemp(
    prefix="flaxres-tests-"
)
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["FLAXRES_TESTS_COMPILED"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from flaxres import heap
from flaxres.ops import native

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data"


def pytest_unconfigure(config: pytest.Config) -> None:
    """Deletes the compiled programs once all workers are done, unless their folder was given."""
    folder = pathlib.Path(os.environ["FLAXRES_TESTS_COMPILED"])
    if folder.name.startswith("flaxres-tests-") and not hasattr(config, "workerinput"):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def without_native_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that a test runs in this process turns them on for that test alone."""
    monkeypatch.setattr(native, "compiled_by", "")


@pytest.fixture(autouse=True)
def with_the_usual_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that a test runs in this process changes neither glibc nor JAX for others."""
    for name in ("keep", "dispatch_inline"):
        monkeypatch.setattr(heap, name, lambda: None)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns the folder in which the tests prepare datasets."""
    return str(tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def photographs(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Makes a folder dataset of small JPEGs: two classes, told apart by their colour."""

    def make(train: int = 6, val: int = 3, size: tuple[int, int] = (40, 32)) -> pathlib.Path:
        root, rng = tmp_path / "photographs", np.random.default_rng(0)
        for split, count in (("train", train), ("val", val)):
            for channel, name in enumerate(("blue", "red")):
                folder = root / split / name
                folder.mkdir(parents=True, exist_ok=True)
                for i in range(count):
                    pixels = rng.integers(0, 80, (*size[::-1], 3), np.uint8)
                    pixels[..., 2 - 2 * channel] += 150
                    Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=90)
        return root

    return make


@pytest.fixture
def shared() -> pathlib.Path:
    """The real images and weights that lie beside a developer's checkout."""
    if not SHARED.is_dir():
        pytest.skip("the shared data folder is not beside this checkout")
    return SHARED
