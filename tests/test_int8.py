"""Networks in 8 bits: which parts are, how close they are, and what is refused."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import flaxres
from flaxres.cli import main
from flaxres.cli._options import parse_run
from flaxres.data.builders import read_digits
from flaxres.errors import InputError
from flaxres.inference.graph import Step
from flaxres.inference.int8 import Int8Network, Quantised, Rounded, is_available
from flaxres.inference.predict import from_tag
from flaxres.models.network import Network
from flaxres.ops import native
from flaxres.serving.model import PROGRAM
from tests.ops.native_cases import needs_compiler
from tests.test_fuse import images_of, with_statistics

pytestmark = needs_compiler


@pytest.fixture(autouse=True)
def eight_bits() -> None:
    native.use_native_convolutions()
    if not is_available():
        pytest.skip("this processor doesn't multiply 8-bit numbers")


def network(name: str, side: int) -> tuple[Network, Any, np.ndarray]:
    model = flaxres.create_model(name)
    return model, with_statistics(model, side), images_of(model, 16, side)


# A member of some families; its chains in 8 bits, and the arrays that are rounded by themselves.
@pytest.mark.parametrize(
    ("name", "side", "chains", "rounded"),
    [
        ("resnet20", 32, 18, 1),
        ("resnet18", 64, 19, 1),
        pytest.param("resnet50", 64, 52, 1, marks=pytest.mark.slow),
        pytest.param("seresnet50", 64, 68, 28, marks=pytest.mark.slow),
        pytest.param("regnety_002", 64, 54, 27, marks=pytest.mark.slow),
    ],
)
def test_it_is_close_to_the_network(name: str, side: int, chains: int, rounded: int) -> None:
    model, variables, images = network(name, side)
    ours = Int8Network(model, variables, images)
    items = ours._items(ours._graph(images[:2])[0])
    assert sum(isinstance(item, Quantised) for item in items) == chains
    assert sum(isinstance(item, Rounded) and not item.back for item in items) == rounded
    found, usual = np.asarray(ours(images)), np.asarray(jax.jit(model.apply)(variables, images))
    assert np.corrcoef(found.ravel(), usual.ravel())[0, 1] > 0.9998


def test_activations_stay_in_8_bits_from_one_convolution_to_the_next() -> None:
    """Also those that a shortcut carries; the result of a projection is float32."""
    model, variables, images = network("resnet18", 64)
    ours = Int8Network(model, variables, images)
    items = ours._items(ours._graph(images[:2])[0])
    found = [item for item in items if isinstance(item, Quantised)]
    last, projections = found[-1], [item for item in found if not item.relu]
    assert [item.results[0].dtype for item in projections] == [np.float32] * 3
    assert {item.results[0].dtype for item in found if item.relu and item is not last} == {
        np.dtype(np.uint8)
    }
    shortcuts = [item.operands[1].dtype for item in found if item.added is not None]
    assert shortcuts.count(np.dtype(np.uint8)) == 5
    assert shortcuts.count(np.dtype(np.float32)) == 3
    assert not any(isinstance(item, Rounded) and item.back for item in items)
    assert not any(isinstance(item, Step) and "conv" in item.primitive.name for item in items)


def test_trained_weights_keep_their_accuracy() -> None:
    predictor = from_tag("resnet20.flaxres_digits")
    grey, labels, testing = read_digits()
    pixels = (grey * 255.0 / 16).round().astype(np.uint8)
    pictures = [Image.fromarray(image).convert("RGB") for image in pixels]
    typical = [picture for picture, test in zip(pictures, testing, strict=True) if not test]
    tested = [picture for picture, test in zip(pictures, testing, strict=True) if test]
    right = {
        name: sum(
            best[0][0] == str(label)
            for best, label in zip(network(tested), labels[testing], strict=True)
        )
        for name, network in (("float32", predictor), ("int8", predictor.in_8_bits(typical[:200])))
    }
    assert right["float32"] >= 495
    assert abs(right["int8"] - right["float32"]) <= 2


def test_the_dtypes_of_a_run_are_compared(
    data_dir: str, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    options = ["--config", "digits", "--data.data-dir", data_dir, "--model.depths", "1", "1", "1"]
    options += ["--train.steps", "60", "--train.devices", "1", "--workdir", run]
    flaxres.fit(parse_run(options, None, "x", "")[0], run)
    stated = json.loads((tmp_path / "run" / "summary.json").read_text())["top1"]
    capfd.readouterr()
    assert main(["bench", "dtypes", *options, "--json"]) == 0
    figures = json.loads(capfd.readouterr().out)
    assert (figures["examples"], figures["float32_top1"]) == (500, stated)
    for name in ("bfloat16", "int8"):
        assert abs(figures[f"{name}_top1"] - stated) < 0.02
        assert figures[f"{name}_agreement"] > 0.95
        assert figures[f"{name}_loss"] == pytest.approx(figures["float32_loss"], abs=0.05)
    assert main(["bench", "dtypes", *options]) == 0
    assert f"int8{figures['int8_top1']:15.2%}" in capfd.readouterr().out


def test_predict_and_serve_in_8_bits(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    grey, _, _ = read_digits()
    for i, image in enumerate(grey[:20]):
        Image.fromarray(image * 15).convert("RGB").save(tmp_path / f"{i}.png")
    words = ["--tag", "resnet20.flaxres_digits", "--int8", str(tmp_path)]
    found = []
    for given in (words, words[:2]):
        assert main(["predict", str(tmp_path), *given, "--json", "--top", "1"]) == 0
        found.append(json.loads(capfd.readouterr().out))
    assert found[0].keys() == found[1].keys()
    assert found[0] != found[1]
    for path, ((name, share),) in found[0].items():
        assert found[1][path][0] == [name, pytest.approx(share, abs=0.05)]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / PROGRAM).touch()
    assert main(["serve", str(tmp_path / "out"), "--int8", str(tmp_path)]) == 2
    assert "--int8 can't change the exported program" in capfd.readouterr().err


def test_larger_activations_than_the_typical_ones_are_cut() -> None:
    model, variables, images = network("resnet20", 32)
    ours = Int8Network(model, variables, images / 100)
    assert np.isfinite(ours(images)).all()


def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    model, variables, images = network("resnet20", 32)
    with pytest.raises(InputError, match="float32, and the network is bfloat16"):
        Int8Network(model.clone(dtype=jnp.dtype("bfloat16")), variables, images)
    with pytest.raises(InputError, match="give some"):
        Int8Network(model, variables, images[:0])
    monkeypatch.setattr(native, "compiled_by", "")
    with pytest.raises(InputError, match="AVX512_VNNI"):
        Int8Network(model, variables, images)


def test_a_dtype_may_be_a_name_and_8_bits_are_not_traced() -> None:
    model, variables, images = network("resnet20", 32)
    eight = Int8Network(model.clone(dtype="float32"), variables, images)
    with pytest.raises(InputError, match="8 bits are not traced"):
        jax.jit(eight)(images)
