"""`load_pretrained` from a stand-in for the hub and from the cache; and `flaxres predict`."""

import csv
import dataclasses
import functools
import hashlib
import http.server
import io
import json
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import flaxres
from flaxres.cli import main
from flaxres.data.preprocess import Preprocess
from flaxres.errors import InputError
from flaxres.inference import predict
from flaxres.inference.predict import Predictor
from flaxres.weights import tags
from flaxres.weights.hub import preprocessing
from flaxres.weights.transfer import template
from tests.weights.hub_server import COMMIT, serving
from tests.weights.test_keras import save_keras_hub

CLASSES = ["ant", "bee", "cat"]
SETTINGS = {
    "architecture": "resnet10t",
    "num_classes": 3,
    "label_names": CLASSES,
    "pretrained_cfg": {
        "num_classes": 3,
        "input_size": [3, 96, 96],
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    },
}


def random_variables(model: Any) -> Any:
    """Returns random variables, statistics included."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.01, 0.1, leaf.shape), leaf.dtype), template(model)
    )


@pytest.fixture
def hub(tmp_path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """Serves one repository, `timm/resnet10t.test`; its address, and its weights."""
    model = flaxres.create_model("resnet10t", num_classes=3)
    flaxres.save_weights(tmp_path / "model.safetensors", random_variables(model), model)
    files = {
        "config.json": json.dumps(SETTINGS).encode(),
        "model.safetensors": (tmp_path / "model.safetensors").read_bytes(),
    }
    with serving({"timm/resnet10t.test": files}) as server:
        yield server.endpoint, files["model.safetensors"]


PROGRAM = """
import json, sys, flaxres, jax, numpy as np
model, variables, p = flaxres.load_pretrained(sys.argv[1], **json.loads(sys.argv[2]))
images = np.ones((1, 96, 96, model.in_channels), np.float32)
logits = jax.jit(model.apply)(variables, images).tolist()
print(json.dumps([logits, p.size, p.resize, p.interpolation, p.mean, p.revision, p.sha256]))
"""


def load(
    endpoint: str, home: pathlib.Path, tag: str = "timm/resnet10t.test", **attributes: Any
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    words = [sys.executable, "-c", PROGRAM, tag, json.dumps(attributes)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_tag_is_loaded_and_then_needs_no_network(
    hub: tuple[str, bytes], tmp_path: pathlib.Path
) -> None:
    endpoint, weights = hub
    gone, home = "http://127.0.0.1:9", tmp_path / "home"
    first = load(endpoint, home)
    assert first.returncode == 0, first.stderr
    logits, size, resize, interpolation, mean, revision, digest = json.loads(
        first.stdout.splitlines()[-1]
    )
    model = flaxres.create_model("resnet10t", num_classes=3)
    np.testing.assert_allclose(
        logits,
        jax.jit(model.apply)(random_variables(model), np.ones((1, 96, 96, 3), np.float32)),
        rtol=1e-4,
    )
    assert (size, resize, interpolation, mean) == (96, 101, "bicubic", [0.5] * 3)
    assert revision == COMMIT
    assert digest == hashlib.sha256(weights).hexdigest()

    adapted = load(endpoint, home, num_classes=5, in_channels=1)
    assert adapted.returncode == 0, adapted.stderr
    assert np.asarray(json.loads(adapted.stdout.splitlines()[-1])[0]).shape == (1, 5)
    unknown = load(endpoint, home, "timm/resnet10t.nothing")
    assert (
        "InputError: config.json of 'timm/resnet10t.nothing' can't be loaded from the hub"
        in unknown.stderr
    )
    offline = load(gone, home)
    assert offline.returncode == 0, offline.stderr
    assert offline.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    nowhere = load(gone, tmp_path / "empty")
    assert "is not in the hub's cache and the hub can't be reached" in nowhere.stderr


@pytest.mark.slow
def test_a_repository_of_keras_hub_without_classes_needs_no_network_once_loaded(
    tmp_path: pathlib.Path,
) -> None:
    """The cache knows which of the files that not every repository has are absent."""
    folder = pathlib.Path(save_keras_hub(tmp_path / "preset", task=False))
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    home = tmp_path / "home"
    with serving({"keras/resnet": files}) as server:
        first = load(server.endpoint, home, "keras/resnet")
    assert first.returncode == 0, first.stderr
    offline = load("http://127.0.0.1:9", home, "keras/resnet")
    assert offline.returncode == 0, offline.stderr
    assert offline.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]


def test_preprocessing_is_timms_evaluation() -> None:
    assert preprocessing({}) == Preprocess(224, 256, "bicubic")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 90, 3), np.uint8))
    inputs = Preprocess(56, 64, "bicubic", (0.5,) * 3, (0.25,) * 3)([image, image])
    crop = image.resize((64, 85), Image.Resampling.BICUBIC).crop((4, 14, 60, 70))
    expected = (np.asarray(crop) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(inputs[1], expected, atol=1e-6)
    assert inputs.shape == (2, 56, 56, 3)
    assert inputs.dtype == np.float32
    with pytest.raises(InputError, match="image 'nothing.jpg' can't be read"):
        Preprocess()("nothing.jpg")


def test_predict_tells_shows_and_draws(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = flaxres.ResNet20(num_classes=3)
    weights, plot = str(tmp_path / "w.safetensors"), tmp_path / "plot.png"
    images = [str(tmp_path / f"{name}.png") for name in ("a", "b")]
    flaxres.save_weights(weights, random_variables(model), model)
    for shade, image in zip((10, 200), images, strict=True):
        Image.new("RGB", (50, 40), (shade, 0, 90)).save(image)
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    words = ["predict", *images, "--weights", weights, "--model", "resnet20"]
    words += ["--classes", str(tmp_path / "names.txt")]
    assert main([*words, "--json", "--top", "2", "--plot", str(plot)]) == 0, capfd.readouterr().err
    predicted = json.loads(capfd.readouterr().out)
    assert predicted.keys() == set(images)
    inputs = Preprocess(32, 32)(images)
    logits = np.asarray(model.apply(random_variables(model), inputs), np.float64)
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    for row, image in zip(probabilities, images, strict=True):
        assert [name for name, _ in predicted[image]] == [CLASSES[i] for i in np.argsort(-row)[:2]]
        np.testing.assert_allclose(
            [value for _, value in predicted[image]], np.sort(row)[::-1][:2], rtol=1e-4
        )
    with Image.open(plot) as drawn:
        assert drawn.width > 400
    assert main(words) == 0
    table = capfd.readouterr().out
    assert all(name in table for name in CLASSES)
    for wrong, message in (
        (["predict", str(tmp_path / "names.txt"), *words[3:]], "this is no JPEG or PNG image"),
        (["predict", images[0]], "one of the arguments --workdir --weights --tag is required"),
        ([*words, "--top", "0"], "--top=0: the rule is > 0"),
    ):
        assert main(wrong) == 2
        err = capfd.readouterr().err
        assert message in err
        assert err.count("\n") == 1


def test_predict_takes_folders_and_prints_csv(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A folder's images are those by content, at any depth; a damaged one is named and left out."""
    model, weights = flaxres.ResNet20(num_classes=3), str(tmp_path / "w.safetensors")
    flaxres.save_weights(weights, random_variables(model), model, None, CLASSES[:3])
    root = tmp_path / "photographs"
    (root / "deep" / "er").mkdir(parents=True)
    (root / ".thumbnails").mkdir()
    names = ["b.JPG", "a.jpeg", "deep/er/no suffix", "deep/c,d.png"]
    for shade, name in enumerate([*names, ".thumbnails/x.png"]):
        with (root / name).open("wb") as file:
            Image.new("RGB", (50, 40), (40 * shade, 0, 90)).save(file, "PNG")
    (root / "notes.txt").write_text("no image")
    words = ["predict", str(root), "--weights", weights, "--top", "1", "--csv"]
    assert main(words) == 0
    output = capfd.readouterr().out
    rows = list(csv.reader(io.StringIO(output)))
    assert rows[0] == ["image", "rank", "class", "probability"]
    assert [row[0] for row in rows[1:]] == [str(root / name) for name in sorted(names)]
    assert all(row[2] in CLASSES and 0 < float(row[3]) <= 1 for row in rows[1:])
    whole = (root / "a.jpeg").read_bytes()
    (root / "a.jpeg").write_bytes(whole[: len(whole) // 2])
    assert main(words) == 2
    output, err = capfd.readouterr()
    assert len(output.splitlines()) == 4
    assert "left out" in err
    assert "a.jpeg" in err
    assert err.endswith("1 of 4 images could not be read, see above\n")
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(tmp_path / "empty"), "--weights", weights]) == 2
    assert "holds no images among 0 files" in capfd.readouterr().err


def test_batches_share_one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last batch is padded, as is one with an image that can't be read."""
    model, shapes = flaxres.ResNet20(num_classes=3, depths=(1, 1, 1)), []
    predictor = Predictor(model, random_variables(model), Preprocess(32, 32), tuple(CLASSES))
    images = [Image.new("RGB", (40, 40), (7 * shade, 0, 90)) for shade in range(6)]
    alone = predictor(images)
    probabilities = Predictor._probabilities

    def noted(self: Predictor, inputs: list[np.ndarray], whole: bool) -> np.ndarray:
        shapes.append((len(inputs), whole))
        return probabilities(self, inputs, whole)

    monkeypatch.setattr(predict, "BATCH", 4)
    monkeypatch.setattr(Predictor, "_probabilities", noted)
    unreadable: list[bytes] = []
    given = [*images[:2], b"no image", *images[2:]]
    results = list(predictor.stream(given, 5, lambda image, error: unreadable.append(image)))
    assert shapes == [(3, True), (3, True)]
    assert unreadable == [b"no image"]
    assert results[2] is None
    for best, expected in zip([*results[:2], *results[3:]], alone, strict=True):
        assert dict(best or []) == pytest.approx(dict(expected), abs=1e-6)
    with pytest.raises(InputError, match="this is no JPEG or PNG image"):
        predictor(given)


@pytest.fixture
def address(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[pathlib.Path, Any]]:
    """Serves a file of weights of `resnet10t` in a folder; the folder, and the row of its tag."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()
    model = flaxres.create_model("resnet10t", num_classes=3)
    flaxres.save_weights(folder / "weights.safetensors", random_variables(model), model)
    digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()[:8]
    name = f"resnet10t-{digest}.safetensors"
    (folder / "weights.safetensors").rename(folder / name)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        row = dataclasses.replace(
            tags.pretrained_info("resnet50.a1_in1k"),
            tag="resnet10t.somewhere",
            num_classes=3,
            repository=f"http://127.0.0.1:{server.server_port}/{name}",
        )
        monkeypatch.setitem(tags.table(), row.tag, row)
        yield folder, row
        server.shutdown()


def test_a_tag_with_an_address_is_downloaded_once(address: tuple[pathlib.Path, Any]) -> None:
    folder, row = address
    model, variables, preprocess = flaxres.load_pretrained(row.tag, resolution="test")
    expected = random_variables(model)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    assert (preprocess.size, preprocess.repository) == (row.test_input_size, row.repository)
    assert preprocess.revision == ""
    (file,) = folder.iterdir()
    file.unlink()  # what follows comes from the cache
    flaxres.load_pretrained(row.tag, num_classes=5)
    with pytest.raises(InputError, match="has no revision 'main'"):
        flaxres.load_pretrained(row.tag, revision="main")


def test_a_file_of_another_digest_is_not_kept(
    address: tuple[pathlib.Path, Any], tmp_path: pathlib.Path
) -> None:
    folder, row = address
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=r"came with SHA-256 .* read it with load_weights"):
        flaxres.load_pretrained(row.tag)
    assert not list((tmp_path / "cache" / "flaxres" / "downloads").iterdir())
