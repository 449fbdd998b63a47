"""Exported ONNX files compute what the network does, in float32 and in 8 bits."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import flaxres
from flaxres.cli import main
from flaxres.config.files import load_config
from flaxres.inference.artifacts import ONNX
from flaxres.inference.export import Form, export
from flaxres.inference.to_onnx import GET_ONNX
from flaxres.ops.kept import jax_operations_only
from flaxres.ops.norm import normalised
from tests.test_export import BATCHES, expected, predictor, random_images


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
    assert f"{100 * facts['top1_onnx_int8']:.2f}% of `model.int8.onnx`" in card
    graph = onnx.load(tmp_path / "out" / "model.int8.onnx").graph
    sources = {name: node.op_type for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 19
    for node in convolutions:
        assert {sources[name] for name in node.input} == {"DequantizeLinear"}
    # All norms but the last, which a layout change follows, are the biases of convolutions.
    assert sum(len(node.input) == 3 for node in convolutions) >= 18
    assert "Sqrt" not in sources.values()
