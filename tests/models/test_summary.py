"""The table of a network's layers: names as in weight files, and totals as counted without it."""

import json
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxres
from flaxres.cli import main
from flaxres.models.count import multiply_accumulates, parameters
from flaxres.models.network import Network
from flaxres.models.registry import list_models, small_images
from flaxres.models.summary import layers, usual_size
from flaxres.weights.transfer import torch_from_variables

# One of each family, with the stems, norms and attentions that have names of their own.
NAMES = [
    *("resnet9", "seresnext26t_32x4d", "resnetv2_50d_evos", "densenet121", "res2net50_26w_4s"),
    *("resnest14d", "skresnet18", "regnety_002", "convnext_tiny", "convnextv2_atto"),
]


def check(model: Network) -> None:
    """Asserts that the rows are the layers of a weight file, with the network's totals."""
    rows = layers(model, 64)
    assert sum(row.parameters for row in rows) == parameters(model)
    assert sum(row.macs for row in rows) == multiply_accumulates(model, 64)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape), variables["params"])
    named: Counter[str] = Counter()
    for key, value in torch_from_variables({"params": zeros, "batch_stats": {}}).items():
        named[key.rpartition(".")[0]] += value.size
    assert {row.name: row.parameters for row in rows} == named
    for depth in (1, 3):
        folded = layers(model, 64, depth)
        assert sum(row.parameters for row in folded) == parameters(model)
        assert len(folded) <= len(rows)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_layers_of_weight_files_and_add_up(name: str) -> None:
    depths = flaxres.create_model(name).depths  # type: ignore[attr-defined]
    check(flaxres.create_model(name, depths=(1,) * len(depths)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "ecaresnet26t", "densenet121"])
def test_rows_of_whole_networks_add_up(name: str) -> None:
    check(flaxres.create_model(name))


def test_outputs_and_costs_are_those_of_the_paper() -> None:
    """He et al. 2016, table 1, with 224 pixels; MACs of a convolution are counted by hand."""
    rows = {row.name: row for row in layers(flaxres.ResNet50(depths=(1, 1, 1, 1)))}
    assert rows["conv1"] == ("conv1", (112, 112, 64), 7 * 7 * 3 * 64, 112 * 112 * 7 * 7 * 3 * 64)
    assert rows["bn1"] == ("bn1", (112, 112, 64), 128, 0)
    conv2 = rows["layer3.0.conv2"]
    assert conv2[1:] == ((14, 14, 256), 9 * 256 * 256, 14 * 14 * 9 * 256 * 256)
    assert rows["fc"] == ("fc", (1000,), 2_049_000, 2_048_000)
    assert list(rows)[:3] == ["conv1", "bn1", "layer1.0.conv1"]


def test_layers_are_folded_and_blocks_of_a_scan_have_rows() -> None:
    model = flaxres.ResNet20(depths=(3, 1, 1))
    every = layers(model)
    assert layers(model.clone(scan_blocks=True, remat=True)) == every
    folded = layers(model, depth=1)
    names = ["conv1", "bn1", "layer1", "layer2", "layer3", "linear"]
    assert [row.name for row in folded] == names
    assert [row.output for row in folded[2:]] == [(32, 32, 16), (16, 16, 32), (8, 8, 64), (10,)]
    below = [row for row in every if row.name.startswith("layer2.")]
    assert folded[3].parameters == sum(row.parameters for row in below)
    assert folded[3].macs == sum(row.macs for row in below)
    deeper = layers(model, depth=2)
    assert [row.name for row in deeper][2:5] == ["layer1.0", "layer1.1", "layer1.2"]
    assert layers(model, depth=9) == every


def test_the_usual_size_is_that_of_the_list() -> None:
    for name in list_models():
        size = 32 if small_images(name) else 224
        assert usual_size(flaxres.create_model(name)) == size, name


def test_what_is_no_network_or_does_not_fit_is_refused() -> None:
    for arguments, message in (
        (("resnet50",), "model is 'resnet50': the rule is a network"),
        ((flaxres.ResNet20(), 32, 0), "depth (=0): the rule is >= 1"),
        ((flaxres.ResNet20(), 0), "size (=0): the rule is >= 1"),
        ((flaxres.DenseNet(), 16), "resize their side of 16 to 29"),
    ):
        with pytest.raises(flaxres.InputError) as refused:
            flaxres.summary(*arguments)  # type: ignore[arg-type]
        assert message in str(refused.value)


def test_the_command_lists_the_layers_of_one_model(capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> str:
        assert main(["models", *words]) == 0
        return capsys.readouterr().out

    text = run("resnet20", "--depth", "1")
    assert text == (
        f"resnet20, one image of 32x32 pixels\n\n{flaxres.summary(flaxres.ResNet20(), depth=1)}\n"
    )
    facts = json.loads(run("resnet20", "--json", "--size", "64"))["resnet20"]
    assert facts["parameters"] == 269_722
    assert facts["pixels"] == 64
    assert facts["layers"][0] == {
        "name": "conv1",
        "output": [64, 64, 16],
        "parameters": 432,
        "macs": 64 * 64 * 432,
    }
    assert run("resnet2[0]").startswith("name ")
    for words, message in (
        (["resnet2*", "--depth", "1"], "--depth=1 needs the name of one model"),
        (["resnet20", "--depth", "0"], "--depth=0: the rule is >= 1"),
        (["--tags", "--depth", "1"], "--depth=1 has no meaning with --tags"),
    ):
        assert main(["models", *words]) == 2
        assert message in capsys.readouterr().err
