"""Exported programs compute what the network does, for any batch, with jax and without flaxres."""

import contextlib
import dataclasses
import errno
import http.client
import io
import json
import pathlib
import re
import signal
import subprocess
import sys
import time
import venv
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import flaxres
from benchmarks.scaling import loopback
from flaxres.cli import main
from flaxres.data.preprocess import Preprocess
from flaxres.inference.artifacts import PACKAGE, SERVER, WEIGHTS
from flaxres.inference.export import (
    Form,
    export,
    folded,
    in_8_bits,
    in_floats,
    prepared,
)
from flaxres.inference.predict import Predictor, from_workdir, read_network
from flaxres.inference.to_onnx import GET_ONNX
from flaxres.ops.kept import jax_operations_only
from flaxres.serving.model import CLASSES, PREPROCESS, PROGRAM

RNG = np.random.default_rng(0)
BATCHES = (1, 7, 64)
# Runs where neither flaxres nor flax can be imported.
LOADING = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("flaxres", "flax", "optax", "orbax"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import jax, numpy as np
program = jax.export.deserialize(open(sys.argv[1] + "/model.jax_export", "rb").read())
given = np.load(sys.argv[1] + "/given.npz")
arrays = {name: np.asarray(program.call(images)) for name, images in given.items()}
np.savez(sys.argv[1] + "/probabilities.npz", **arrays)
"""


def alive(model: Any) -> Any:
    """Returns variables with norms like those of a trained network."""

    def drawn(path: Any, leaf: jax.Array) -> jax.Array:
        around = {
            "scale": (1.0, 0.2),
            "bias": (0.0, 0.2),
            "mean": (0.0, 0.2),
            "var": (1.0, 0.2),
        }.get(path[-1].key)
        if around is None:
            return leaf
        values = RNG.uniform(around[0] - around[1], sum(around), leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(
        drawn, dict(model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    )


def predictor(name: str, size: int = 32, **attributes: Any) -> Predictor:
    """Returns a network with random parameters and statistics."""
    model = flaxres.create_model(name, num_classes=10, **attributes)
    return Predictor(
        model, alive(model), Preprocess(size, size), tuple(f"class {i}" for i in range(10))
    )


def random_images(count: int, size: int = 32) -> np.ndarray:
    return RNG.integers(0, 256, (count, size, size, 3), np.uint8)


def expected(network: Predictor, images: np.ndarray) -> np.ndarray:
    preprocess = network.preprocess
    mean, std = (np.array(values, np.float32) for values in (preprocess.mean, preprocess.std))
    normal = (images.astype(np.float32) / 255 - mean) / std
    logits: Any = jax.jit(network.model.apply)(network.variables, normal)
    return np.asarray(jax.nn.softmax(logits))


def probabilities(
    folder: pathlib.Path, given: dict[str, np.ndarray], python: str = sys.executable
) -> Any:
    """Runs the program in `folder` in a process of its own, and returns its outputs."""
    np.savez(folder / "given.npz", **given)  # type: ignore[arg-type]
    subprocess.run([python, "-c", LOADING, str(folder)], check=True, cwd=folder)
    return np.load(folder / "probabilities.npz")


@pytest.mark.slow
def test_a_process_without_flaxres_gives_the_same_probabilities(tmp_path: pathlib.Path) -> None:
    network = predictor("resnet20")
    done = export(network, tmp_path / "out")
    assert done.folded == 19
    assert {path.name for path in done.folder.iterdir()} == {
        PROGRAM,
        WEIGHTS,
        CLASSES,
        SERVER,
        PACKAGE,
        PREPROCESS,
        "README.md",
    }
    given = {str(count): random_images(count) for count in BATCHES}
    for name, measured in probabilities(done.folder, given).items():
        np.testing.assert_allclose(measured, expected(network, given[name]), atol=1e-5)
    assert json.loads((done.folder / CLASSES).read_text()) == list(network.classes)
    assert "269,722 parameters" in (done.folder / "README.md").read_text()
    loaded = flaxres.load_weights(done.folder / WEIGHTS, network.model)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), loaded, network.variables))


def test_every_device_is_in_the_program(tmp_path: pathlib.Path) -> None:
    export(predictor("resnet20"), tmp_path)
    program = jax.export.deserialize(bytearray((tmp_path / PROGRAM).read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert str(program.in_avals[0]) == "uint8[batch,32,32,3]"


@pytest.mark.parametrize(
    ("name", "attributes", "norms"),
    [
        ("resnet20", {"depths": (1, 2, 1)}, 9),
        pytest.param("resnet50", {"depths": (1, 1), "widths": (16, 32)}, 8, marks=pytest.mark.slow),
        pytest.param("resnet10t", {"widths": (16, 32, 64, 128)}, 15, marks=pytest.mark.slow),
        # A norm before a convolution stays, as the first of each block and the last one do.
        ("resnetv2_50", {"depths": (1, 1), "widths": (64, 128)}, 4),
        ("densenet121", {"depths": (2, 2)}, 5),
        # One behind a pooling stays too: a negative scale would turn the maximum into a minimum.
        ("resnet9", {"widths": (8, 12, 16)}, 5),
    ],
)
def test_folded_norms_change_nothing(name: str, attributes: dict[str, Any], norms: int) -> None:
    network = predictor(name, 64, **attributes)
    variables, count = folded(network.model, network.variables)
    assert count == norms
    images = jnp.asarray(RNG.standard_normal((4, 64, 64, 3)), jnp.float32)
    before, after = (
        np.asarray(jax.jit(network.model.apply)(v, images)) for v in (network.variables, variables)
    )
    np.testing.assert_allclose(after, before, atol=1e-4 * abs(before).max())
    scales = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
        if path[-1].key == "scale"
    ]
    assert sum(bool((np.asarray(scale) == 1).all()) for scale in scales) >= norms


def test_logits_and_scanned_blocks_and_8_bits(tmp_path: pathlib.Path) -> None:
    network = predictor("resnet20", depths=(1, 4, 1), scan_blocks=True)
    export(network, tmp_path / "logits", Form(pixels=False, fold=False))
    images = RNG.standard_normal((3, 32, 32, 3)).astype(np.float32)
    measured = probabilities(tmp_path / "logits", {"a": images})["a"]
    np.testing.assert_allclose(
        measured, network.model.apply(network.variables, images), rtol=1e-4, atol=1e-4
    )
    assert not (tmp_path / "logits" / SERVER).exists()
    plain, small = (
        export(network, tmp_path / "plain"),
        export(network, tmp_path / "int8", Form(int8=True)),
    )
    assert small.program_bytes < plain.program_bytes / 2
    variables = network.variables
    kernel, rounded = (
        tree["params"]["conv1"]["kernel"] for tree in (variables, in_floats(in_8_bits(variables)))
    )
    step = abs(np.asarray(kernel)).max((0, 1, 2)) / 127
    assert (abs(np.asarray(kernel) - np.asarray(rounded)) <= 0.5001 * step).all()
    assert (np.asarray(kernel) != np.asarray(rounded)).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_programs_are_in_float32_and_weights_say_their_dtype(
    dtype: str, tmp_path: pathlib.Path
) -> None:
    network = predictor("resnet20", depths=(1, 1, 1), dtype=jnp.dtype(dtype))
    export(network, tmp_path)
    program = jax.export.deserialize((tmp_path / PROGRAM).read_bytes())
    convolutions = re.findall(r"stablehlo.convolution.*tensor<[^>]*x(\w+)>", program.mlir_module())
    assert convolutions
    assert set(convolutions) == {"f32"}
    assert read_network(str(tmp_path / WEIGHTS))[0].dtype == jnp.dtype(dtype)


def test_what_can_not_be_written_or_converted_is_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(flaxres.InputError, match=r"--out .*file.* can't be written"):
        export(predictor("resnet20"), tmp_path / "file")
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(flaxres.InputError, match=f"needs jax2onnx, .*{GET_ONNX[:20]}"):
        export(predictor("resnet20"), tmp_path, Form(onnx=True))


def test_an_export_that_fails_leaves_the_earlier_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def content() -> dict[pathlib.Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    network = predictor("resnet20", depths=(1, 1, 1))
    export(network, tmp_path)
    for name in ("model.onnx", "model.int8.onnx"):
        (tmp_path / name).write_bytes(b"of an earlier export")
    before = content()

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("flaxres.inference.export.save_weights", full)
        with pytest.raises(flaxres.InputError, match="can't be written .No space left"):
            export(network, tmp_path)
    assert content() == before
    export(network, tmp_path, Form(pixels=False))
    assert not {"model.onnx", "model.int8.onnx", "serve.py"} & {
        path.name for path in tmp_path.iterdir()
    }


def test_converters_see_jaxs_own_operations() -> None:
    network = predictor("resnet50", 16, depths=(1, 1), widths=(16, 128))

    def operations() -> set[str]:
        primitives: set[str] = set()

        def walk(jaxpr: Any) -> None:
            for equation in jaxpr.eqns:
                primitives.add(equation.primitive.name)
                for inner in jax.extend.core.jaxprs_in_params(equation.params):
                    walk(inner)

        walk(
            jax.make_jaxpr(lambda x: network.model.apply(network.variables, x))(
                jnp.zeros((1, 16, 16, 3))
            ).jaxpr
        )
        return primitives

    ours = {"flaxres_keep", "flaxres_convolution", "flaxres_product", "platform_index"}
    assert ours <= operations()
    with jax_operations_only():
        assert not ours & operations()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("run")
    words = (
        "train --config configs/digits.py --train.epochs 30 --train.tensorboard False "
        "--train.devices 1 --optim.warmup-epochs 2"
    )
    assert (
        main(
            [
                *words.split(),
                "--workdir",
                str(folder / "run"),
                "--data.data-dir",
                str(folder / "data"),
            ]
        )
        == 0
    )
    return folder / "run"


@pytest.mark.slow
def test_a_run_is_exported_with_its_accuracy_and_served(
    workdir: pathlib.Path, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "export",
                "--workdir",
                str(workdir),
                "--out",
                str(tmp_path / "out"),
                "--int8",
                "--json",
            ]
        )
        == 0
    )
    facts = json.loads(capfd.readouterr().out)
    summary = json.loads((workdir / "summary.json").read_text())
    assert facts["top1_trained"] == summary["top1"] > 0.9
    assert facts["top1_exported"] > facts["top1_trained"] - 0.02
    assert (
        f"{100 * facts['top1_exported']:.2f}% of 500"
        in (tmp_path / "out" / "README.md").read_text()
    )
    port = loopback().partition(":")[2]
    server = subprocess.Popen([sys.executable, str(tmp_path / "out" / SERVER), port])
    try:
        for _ in range(1200):  # it is compiled first
            try:
                pixels = post(int(port), random_images(2, 8).tobytes(), "application/x-raw-rgb")
                break
            except ConnectionRefusedError:
                time.sleep(0.1)
        photograph = encoded(random_images(1, 40)[0, :, :30])
        whole = post(int(port), photograph)
        broken = post(int(port), photograph[:30])
    finally:
        server.kill()
        server.wait()
    best = json.loads(pixels[1])
    assert [len(row) for row in best] == [5, 5]
    assert set(best[0]) <= set("0123456789")
    trained = from_workdir(str(workdir))
    exact = dataclasses.replace(trained, variables=in_floats(prepared(trained, Form(int8=True))[0]))
    assert json.loads(whole[1])[0] == pytest.approx(dict(exact([photograph], top=5)[0]), abs=1e-5)
    assert broken[0] == 415
    assert "30 bytes of type image/png are no image" in broken[1]


@pytest.mark.slow
def test_a_run_is_served_without_an_export(workdir: pathlib.Path) -> None:
    words = [sys.executable, "-m", "flaxres.cli", "serve", str(workdir), "0", "--max-batch", "1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().partition(" ")[0]
            photograph = encoded(random_images(1, 40)[0])
            status, content = post(int(address.rpartition(":")[2]), photograph)
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0
        finally:
            server.kill()
    assert status == 200
    expected = dict(from_workdir(str(workdir))([photograph], top=5)[0])
    assert json.loads(content)[0] == pytest.approx(expected, abs=1e-5)


def encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def post(port: int, body: bytes, content_type: str = "image/png") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", "/", body, {"Content-Type": content_type})
        response = connection.getresponse()
        return response.status, response.read().decode()


@pytest.mark.slow
def test_a_new_environment_with_jax_alone_gives_the_same(tmp_path: pathlib.Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run(
        [python, "-m", "pip", "install", "-q", f"jax=={jax.__version__}", "flatbuffers"], check=True
    )
    network = predictor("resnet18", 64)
    export(network, tmp_path / "out")
    given = {str(count): random_images(count, 64) for count in BATCHES}
    for name, measured in probabilities(tmp_path / "out", given, python).items():
        np.testing.assert_allclose(measured, expected(network, given[name]), atol=1e-5)
