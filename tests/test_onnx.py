"""Exported ONNX files compute what the network does, in float32 and in 8 bits."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import flaxres
from flaxres.cli import main
from flaxres.config.files import load_config
from flaxres.data.augment import normalise
from flaxres.inference import to_onnx
from flaxres.inference.artifacts import ONNX, ONNX_IN_8_BITS
from flaxres.inference.export import Form, export, onnx_accuracy, typical_inputs
from flaxres.inference.to_onnx import GET_ONNX, outputs
from flaxres.ops.kept import jax_operations_only
from flaxres.ops.norm import normalised
from flaxres.training.evaluation import evaluation_batches
from flaxres.training.run import prepare_run
from tests.test_export import BATCHES, encoded, expected, predictor, random_images


@pytest.mark.slow
def test_onnx_agrees(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("jax2onnx", reason=f"jax2onnx is not installed: {GET_ONNX}")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    for name in ("resnet20", "resnet18d"):
        network = predictor(name, 64)
        export(network, tmp_path / name, Form(onnx=True))
        session = onnxruntime.InferenceSession(tmp_path / name / ONNX)
        for count in BATCHES[:2]:
            images = random_images(count, 64)
            (measured,) = session.run(None, {session.get_inputs()[0].name: images})
            np.testing.assert_allclose(measured, expected(network, images), atol=1e-5)


def test_a_converter_sees_a_norm_as_a_product_and_a_sum() -> None:
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(1, 2, (2, 3, 3, 4)), jnp.float32)
    rows = [jnp.asarray(random.normal(size=4), jnp.float32) for _ in range(3)]
    usual = normalised(jnp.float32, x, *rows)
    with jax_operations_only():
        np.testing.assert_allclose(normalised(jnp.float32, x, *rows), usual, rtol=1e-5, atol=1e-5)
        jaxpr = jax.make_jaxpr(lambda x: normalised(jnp.float32, x, *rows))(x)
    large = [str(e.primitive) for e in jaxpr.eqns if e.outvars[0].aval.shape == x.shape]
    assert [name for name in large if name != "broadcast_in_dim"] == ["mul", "add"]


@pytest.mark.slow
def test_onnx_in_8_bits_has_the_accuracy_of_the_run(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jax2onnx", reason=f"jax2onnx is not installed: {GET_ONNX}")
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    config = load_config("digits")
    train = dataclasses.replace(config.train, epochs=30, tensorboard=False, devices=1)
    model = dataclasses.replace(config.model, dtype="bfloat16")  # exports are in float32
    data = dataclasses.replace(config.data, data_dir=str(tmp_path / "data"))
    workdir = tmp_path / "run"
    flaxres.fit(dataclasses.replace(config, train=train, data=data, model=model), str(workdir))
    capfd.readouterr()
    digits = np.load(pathlib.Path(flaxres.__file__).parent / "data" / "digits.npz")
    images = tmp_path / "images"
    images.mkdir()
    for i, image in enumerate(digits["images"][~digits["test"]][:100]):
        Image.fromarray((image / 16 * 255).astype(np.uint8)).save(images / f"{i}.png")
    words = ["export", "--workdir", str(workdir), "--out", str(tmp_path / "out"), "--json"]
    assert main([*words, "--onnx-int8", str(images)]) == 0
    said = capfd.readouterr()
    assert "Traceback" not in said.err
    facts = json.loads(said.out)
    assert facts["top1_onnx_int8"] > facts["top1_exported"] - 0.02
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{100 * facts['top1_onnx_int8']:.2f}% with model.int8.onnx" in card
    graph = onnx.load(tmp_path / "out" / "model.int8.onnx").graph
    sources = {name: node.op_type for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 19
    for node in convolutions:
        assert {sources[name] for name in node.input} == {"DequantizeLinear"}
    # All norms but the last, which a layout change follows, are the biases of convolutions.
    assert sum(len(node.input) == 3 for node in convolutions) >= 18
    assert "Sqrt" not in sources.values()
    # Rounded probabilities would tie.
    assert sources[graph.output[0].name] == "Softmax"
    images = random_images(200, 8)
    both = [
        next(outputs(tmp_path / "out" / name, iter([images]))) for name in (ONNX, ONNX_IN_8_BITS)
    ]
    assert len(np.unique(both[1])) > 1000
    np.testing.assert_allclose(both[0], both[1], atol=0.25)


def test_8_bits_without_onnx_and_without_colours_are_refused(tmp_path: pathlib.Path) -> None:
    image = encoded(random_images(1, 32)[0])
    with pytest.raises(flaxres.InputError, match="without form.onnx"):
        export(predictor("resnet20"), tmp_path, typical=[image])
    grey = predictor("resnet20", depths=(1, 1, 1))
    grey = dataclasses.replace(grey, model=grey.model.clone(in_channels=1))
    with pytest.raises(flaxres.InputError, match="takes 1-channel images"):
        typical_inputs(grey, Form(onnx=True), [image])
    colours = predictor("resnet20", depths=(1, 1, 1))
    with pytest.raises(flaxres.InputError, match="JPEG or PNG"):
        typical_inputs(colours, Form(onnx=True), [image, image[:40]])
    (pixels,), (normal,) = (
        typical_inputs(colours, Form(pixels=pixels, onnx=True), [image]) for pixels in (True, False)
    )
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(colours.preprocess.normalised(pixels), normal)


@pytest.mark.parametrize("pixels", [True, False])
def test_the_accuracy_of_a_file_counts_every_example_once(
    pixels: bool, data_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config("digits")
    data = dataclasses.replace(config.data, data_dir=data_dir)
    run = prepare_run(dataclasses.replace(config, data=data), training=False)
    batches = list(evaluation_batches(run))
    given, labels = (
        np.concatenate([np.asarray(batch[name])[batch["weight"] > 0] for batch in batches])
        for name in ("image", "label")
    )
    right = labels.copy()
    right[:100] = (right[:100] + 1) % 10  # 100 of 500 are wrong
    seen = []

    def answers(path: pathlib.Path, batches: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        first = 0
        for batch in batches:
            seen.append(batch)
            yield np.eye(10)[right[first : first + len(batch)]]
            first += len(batch)

    monkeypatch.setattr(to_onnx, "outputs", answers)
    assert onnx_accuracy(run, Form(pixels), pathlib.Path("any")) == 0.8
    images = np.concatenate(seen)
    if pixels:
        np.testing.assert_array_equal(images, given)
    else:
        expected = normalise(jnp.asarray(given), data.mean, data.std, jnp.float32)
        np.testing.assert_array_equal(images, expected)
