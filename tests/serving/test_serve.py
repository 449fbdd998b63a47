"""An exported folder is served without flaxres, and gives what `flaxres predict` gives."""

import contextlib
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from PIL import Image

import flaxres
from flaxres import save_weights
from flaxres.cli import main
from flaxres.data.preprocess import Preprocess
from flaxres.inference.artifacts import PACKAGE, SERVER
from flaxres.inference.export import Form, export
from flaxres.inference.predict import Predictor
from flaxres.inference.served import served
from flaxres.serving.errors import StartError
from flaxres.serving.model import CLASSES, PREPROCESS, PROGRAM, load

from .clients import png

ROOT = pathlib.Path(__file__).parents[2]
# Runs a program where flaxres and jaxtyping can't be imported; sys.argv[1] adds to them.
ALONE = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"flaxres", "flax", "optax", "jaxtyping", *sys.argv[1].split()}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[2:]
sys.path[0] = sys.argv[0].rpartition("/")[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def command(folder: pathlib.Path, *words: str, absent: str = "") -> list[str]:
    return [sys.executable, "-c", ALONE, absent, str(folder / SERVER), *words]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    model = flaxres.ResNet9(depths=(1,), widths=(8,), stem_width=8, num_classes=10)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3)))
    # The last layer decides, or all probabilities would be alike.
    params = dict(variables["params"])
    params["fc"] = jax.tree.map(lambda leaf: 20 * leaf, params["fc"])
    names = tuple(f"class {i}" for i in range(10))
    return Predictor(model, dict(variables) | {"params": params}, Preprocess(32, 36), names)


@pytest.fixture(scope="module")
def folder(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("export")
    return export(predictor, folder, Form(fold=False)).folder


@contextlib.contextmanager
def started(words: list[str]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Starts a server on a free port; yields the process and the port."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, cwd="/", env=environment
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("http://127.0.0.1:"), line
            assert "open it in a browser" in line
            yield process, int(line.partition(" ")[0].rpartition(":")[2])
        finally:
            process.kill()


def predict(port: int, body: bytes) -> dict[str, float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", "/predict?top=10", body)
        response = connection.getresponse()
        content = response.read()
    assert response.status == 200, content
    (row,) = json.loads(content)
    assert isinstance(row, dict)
    return row


def photographs(count: int = 8) -> list[bytes]:
    """Returns photographs of ImageNet if they are there, and images of many formats."""
    rng = np.random.default_rng(0)
    turned = Image.fromarray(rng.integers(0, 256, (60, 90, 3), np.uint8))
    turned.getexif()[274] = 6
    grey = Image.fromarray(np.linspace(0, 65535, 4000).reshape(50, 80).astype(np.uint16))
    made = [png(turned), png(grey), png(turned.convert("P")), png(turned.resize((900, 3)))]
    archive = ROOT.parent / "shared" / "data" / "imagenet_sample.tar"
    if archive.exists():
        with tarfile.open(archive) as tar:
            files = (tar.extractfile(member) for member in tar if member.isfile())
            encoded = (file.read() for file in files if file is not None)
            jpegs = (data for data in encoded if data[:2] == b"\xff\xd8")
            made += [data for data, _ in zip(jpegs, range(count), strict=False)]
    return made


def test_the_server_alone_gives_what_predict_gives(
    predictor: Predictor, folder: pathlib.Path
) -> None:
    shown = predictor.preprocess.for_photographs()
    expected = Predictor(predictor.model, predictor.variables, shown, predictor.classes)
    images = photographs()
    with started(command(folder, "0", "--max-batch", "4")) as (process, port):
        with ThreadPoolExecutor(4) as pool:
            rows = list(pool.map(lambda data: predict(port, data), images))
        with socket.create_connection(("127.0.0.1", port)) as taken:
            again = ["serve", str(folder), "--port", str(taken.getpeername()[1])]
            assert main(again) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    for row, best in zip(rows, expected(images, top=10), strict=True):
        assert row == pytest.approx(dict(best), abs=1e-6)
        assert list(row) == [name for name, _ in best]


def test_a_network_that_is_not_exported_gives_what_predict_gives(
    predictor: Predictor, tmp_path: pathlib.Path
) -> None:
    shown = predictor.for_photographs()
    path, images = tmp_path / "network.safetensors", photographs()
    save_weights(path, shown.variables, shown.model, shown.preprocess, shown.classes)
    words = [sys.executable, "-m", "flaxres.cli", "serve", "--weights", str(path), "--port", "0"]
    with started(words) as (_, port), ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda data: predict(port, data), images))
    for row, best in zip(rows, shown(images, top=10), strict=True):
        assert row == pytest.approx(dict(best), abs=1e-6)
        assert list(row) == [name for name, _ in best]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no network: give one of FOLDER, --workdir, --weights, --tag"),
        (["8000", "--tag", "resnet50"], "FOLDER '8000' and --tag 'resnet50': give one of them"),
        (["nothing"], "'nothing' is no folder of `flaxres export` and no workdir of a run: give"),
        (["--tag", "resnet5"], "unknown pretrained tag 'resnet5': did you mean resnet50 or"),
    ],
)
def test_one_network_is_served(
    words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--port", "0", *words]) == 2
    assert message in capfd.readouterr().err


def test_a_network_without_colours_is_refused() -> None:
    model = flaxres.ResNet9(depths=(1,), widths=(8,), num_classes=2, in_channels=1)
    variables = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 1)))
    with pytest.raises(flaxres.InputError, match="1-channel images: the server takes colours"):
        served(Predictor(model, variables, Preprocess(32, 36), ("cat", "dog")))


def test_without_waitress_the_standard_library_serves(folder: pathlib.Path) -> None:
    words = command(folder, "0", "--max-batch", "1", absent="waitress")
    with started(words) as (process, port):
        assert len(predict(port, photographs(0)[0])) == 10
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "70000"], "--port=70000: the rule is 0 to 65535"),
        (["8000", "--port", "8001"], "PORT=8000 and --port=8001: give one of them"),
        (["--max-mb", "0"], "--max-mb=0: the rule is > 0"),
        (["--max-batch", "-1"], "--max-batch=-1: the rule is > 0"),
        (["--threads", "many"], "invalid int value: 'many'"),
    ],
)
def test_options_that_break_their_rule_are_one_line(
    words: list[str], message: str, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(tmp_path), *words]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_help_of_the_server_is_short(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    text = capfd.readouterr().out
    for option in ("FOLDER", "PORT", "--host", "--threads", "--max-batch", "--max-queue"):
        assert option in text


def test_a_folder_that_is_no_export_is_one_line(
    folder: pathlib.Path, predictor: Predictor, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(StartError, match=r"preprocess.json.*No such file.*flaxres export"):
        load(tmp_path)
    for name in (PREPROCESS, CLASSES, PROGRAM):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / CLASSES).write_text('["one", "one"]')
    with pytest.raises(StartError, match=r"has 10 classes, classes.json 2: export again"):
        load(tmp_path)
    (tmp_path / CLASSES).write_text(json.dumps(["one"] * 10))
    assert load(tmp_path).classes[:2] == ("one (0)", "one (1)")
    (tmp_path / PREPROCESS).write_text("{}")
    with pytest.raises(StartError, match="one JSON object with the keys"):
        load(tmp_path)
    (tmp_path / PREPROCESS).write_bytes((folder / PREPROCESS).read_bytes())
    (tmp_path / PROGRAM).write_bytes(b"none")
    with pytest.raises(StartError, match="can't be read"):
        load(tmp_path)
    export(predictor, tmp_path / "logits", Form(pixels=False))
    assert not (tmp_path / "logits" / PACKAGE).exists()
    (tmp_path / PROGRAM).write_bytes((tmp_path / "logits" / PROGRAM).read_bytes())
    with pytest.raises(StartError, match=r"the rule is uint8\[batch,32,32,3\]"):
        load(tmp_path)


def test_the_package_is_copied_as_it_is(folder: pathlib.Path) -> None:
    source = ROOT / "flaxres" / "serving"
    files = {path.name for path in source.iterdir() if path.suffix in (".py", ".html")}
    assert "page.html" in files
    assert {path.name for path in (folder / PACKAGE).iterdir()} - {"__pycache__"} == files
    for name in files:
        assert (folder / PACKAGE / name).read_bytes() == (source / name).read_bytes()
    assert json.loads((folder / PREPROCESS).read_text()) == {
        "size": 32,
        "resize": 36,
        "interpolation": "bilinear",
        "exif": True,
        "squash": False,
    }
    assert "flaxres" not in (folder / SERVER).read_text()
