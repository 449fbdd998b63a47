"""The table of pretrained weights, and names that are resolved without a network connection."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import flaxres
from flaxres.cli import main
from flaxres.data.preprocess import Preprocess
from flaxres.errors import InputError
from flaxres.models.registry import MODELS
from flaxres.weights import hub, located
from flaxres.weights.files import read
from flaxres.weights.hub_folder import in_timm
from flaxres.weights.tags import table
from flaxres.weights.transfer import template, torch_from_variables, variables_from_torch


def test_every_tag_has_a_network_and_one_default_an_architecture() -> None:
    hosted = [row for row in table().values() if row.repository]
    defaults = [row.architecture for row in hosted if row.default]
    assert sorted(defaults) == sorted({row.architecture for row in hosted})
    assert {row.architecture for row in table().values()} <= MODELS.keys()
    assert {row.crop_mode for row in table().values()} == {"center", "squash"}


def test_tags_are_listed_in_natural_order() -> None:
    tags = flaxres.list_pretrained("resnet*.tv_in1k")
    assert tags == [f"resnet{n}.tv_in1k" for n in (18, 34, 50, 101, 152)]
    assert flaxres.list_pretrained("no*") == []


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("resnet50", "resnet50.a1_in1k"),
        ("resnet50.tv_in1k", "resnet50.tv_in1k"),
        ("ResNet50_Weights.IMAGENET1K_V2", "resnet50.tv2_in1k"),
        ("ResNet50_Weights.DEFAULT", "resnet50.tv2_in1k"),
        ("ResNet18_Weights.DEFAULT", "resnet18.tv_in1k"),
        ("DenseNet161_Weights.IMAGENET1K_V1", "densenet161.tv_in1k"),
    ],
)
def test_names_stand_for_tags(name: str, tag: str) -> None:
    assert flaxres.pretrained_info(name).tag == tag


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet50.a1_in22k", "resnet50.a1_in1k"),
        ("resnet20", "did you mean"),
        ("ResNet50_Weights.IMAGENET1K_V3", "ResNet50_Weights.IMAGENET1K_V[12]"),
        ("VGG11_Weights.IMAGENET1K_V1", "unknown torchvision's weights"),
        ("nonsense", "flaxres models --tags"),
    ],
)
def test_unknown_tags_are_refused_before_the_network(
    name: str, near: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(located, "fetch", lambda *_: pytest.fail("the network was used"))
    with pytest.raises(InputError, match=near):
        flaxres.load_pretrained(name)
    with pytest.raises(InputError, match="unknown resolution 'tests'"):
        flaxres.load_pretrained("resnet50", resolution="tests")


def test_a_resolution_and_a_crop_are_timms_or_refused() -> None:
    settings = {"input_size": [3, 224, 224], "crop_pct": 0.95, "interpolation": "bicubic"}
    tested = settings | {"test_input_size": [3, 288, 288], "test_crop_pct": 1.0}
    assert hub.preprocessing(tested) == Preprocess(224, 235, "bicubic")
    assert hub.preprocessing(tested, "test") == Preprocess(288, 288, "bicubic")
    null = settings | {"test_input_size": None, "test_crop_pct": None}
    assert hub.preprocessing(null, "test") == Preprocess(224, 235, "bicubic")
    squashed = hub.preprocessing(settings | {"crop_mode": "squash"})
    assert squashed == Preprocess(224, 235, "bicubic", squash=True)
    for wrong in ({"crop_mode": "border"}, {"input_size": [3, 224, 288]}):
        with pytest.raises(ValueError, match="border|224x288"):
            hub.preprocessing(settings | wrong)


@pytest.mark.extra
@pytest.mark.parametrize("mode", ["center", "squash"])
def test_pixels_are_timms(mode: str) -> None:
    _, timm = reference()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (90, 61, 3), np.uint8)
    settings = {"input_size": (3, 48, 48), "crop_pct": 0.9, "crop_mode": mode}
    transform = timm.data.create_transform(**settings, interpolation="bicubic")
    theirs = transform(Image.fromarray(pixels)).numpy().transpose(1, 2, 0)
    ours = hub.preprocessing(settings)(Image.fromarray(pixels))[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_weights_without_a_head_get_a_new_one() -> None:
    model = flaxres.ResNet(
        depths=(1,), widths=(8,), block="basic", stem="small", stem_width=8, num_classes=0
    )
    state = torch_from_variables(jax.tree.map(lambda leaf: np.ones(leaf.shape), template(model)))
    with pytest.raises(InputError, match="missing: fc"):
        variables_from_torch(state, model.clone(num_classes=3))
    adapted = variables_from_torch(state, model.clone(num_classes=3), adapt=True)
    assert adapted["params"]["fc"]["kernel"].shape == (8, 3)


def test_the_command_lists_tags(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--tags", "resnet50.a1_*"]) == 0
    printed = capfd.readouterr().out
    assert "80.38" in printed
    assert "81.24" in printed
    assert main(["models", "--tags", "resnetv2_50x1_bit", "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["resnetv2_50x1_bit.goog_in21k"]["num_classes"] == 21843
    assert main(["models", "--tags", "no*"]) == 2
    assert "no pretrained weights match 'no*'" in capfd.readouterr().err
    assert main(["models", "--tags", "--size", "64"]) == 2


def reference() -> tuple[Any, Any]:
    """Returns torch and timm 1.0.31; skips the test without them."""
    pytest.importorskip("torch", reason="PyTorch is not installed: the extra `parity`")
    from benchmarks.peers import torch_and_timm

    try:
        torch, timm = torch_and_timm()
    except ModuleNotFoundError:
        pytest.skip("timm is not installed: the extra `parity`")
    if timm.__version__ != "1.0.31":
        pytest.skip(f"timm {timm.__version__}: the table is of 1.0.31")
    return torch, timm


@pytest.mark.extra
def test_the_table_is_what_the_program_writes_and_lacks_no_architecture() -> None:
    _, timm = reference()
    from tools.pretrained_table import TABLE, hosted, written

    assert written(None, "") == TABLE.read_text()
    assert {tag.partition(".")[0] for tag in hosted(timm)} <= MODELS.keys()
    ours = {name for name in MODELS if in_timm(name)}
    assert ours == set(filter(timm.is_model, MODELS)), (
        "flaxres/models/rows: names that timm lacks belong to OWN, the others to TIMM or ROWS"
    )


@pytest.mark.extra
@pytest.mark.parametrize("channels", [1, 4])
def test_first_convolutions_are_adapted_as_timm_does(channels: int) -> None:
    _, timm = reference()
    state = timm.create_model("test_resnet").state_dict()
    first = f"{flaxres.pretrained_info('test_resnet').first_conv}.weight"
    expected = timm.models.adapt_input_conv(channels, state[first]).numpy()
    model = flaxres.create_model("test_resnet", in_channels=channels)
    arrays = {key: value.numpy() for key, value in state.items()}
    back = torch_from_variables(variables_from_torch(arrays, model, adapt=True))
    np.testing.assert_allclose(back[first], expected, rtol=1e-6, atol=1e-7)
    assert all(np.array_equal(back[key], arrays[key]) for key in arrays if key != first)


@pytest.mark.extra
@pytest.mark.slow
def test_a_small_senet_agrees_with_timm() -> None:
    """Covers a narrower first convolution and a 3x3 projection, as in SENet-154."""
    torch, _ = reference()
    from timm.models.resnet import Bottleneck, ResNet

    torch.manual_seed(0)
    network = ResNet(
        Bottleneck,
        (1, 2, 1, 1),
        num_classes=5,
        channels=(8, 16, 16, 16),
        stem_type="deep",
        stem_width=8,
        cardinality=4,
        base_width=32,
        down_kernel_size=3,
        block_reduce_first=2,
        block_args={"attn_layer": "se"},
    ).eval()
    model = flaxres.create_model(
        "senet154",
        depths=(1, 2, 1, 1),
        widths=(8, 16, 16, 16),
        stem_width=8,
        cardinality=4,
        base_width=32,
        num_classes=5,
    )
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    variables = variables_from_torch(state, model)
    images = np.random.default_rng(0).normal(size=(2, 33, 29, 3)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(jax.jit(model.apply)(variables, images), expected, atol=1e-5)


def test_a_tag_in_place_of_a_file_is_refused_by_its_name() -> None:
    with pytest.raises(InputError, match=r"'resnet50.a1_in1k' are a tag and no file: write"):
        read(pathlib.Path("resnet50.a1_in1k"))
