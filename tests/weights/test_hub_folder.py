"""Folders in the hub's form: written here, read here and by timm."""

import dataclasses
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxres
from benchmarks.peers import torch_and_timm
from flaxres.cli import main
from flaxres.data.preprocess import Preprocess
from flaxres.errors import InputError
from flaxres.weights import hub_folder
from flaxres.weights.transfer import template

PREPROCESS = Preprocess(64, 72, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), exif=True)
CLASSES = ("cat", "dog", "émeu")


def random_variables(model: Any) -> Any:
    """Returns random variables, with scales and variances that hide no branch."""
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        fan_in = math.prod(leaf.shape[:-1])
        values = rng.normal(0, fan_in**-0.5 if len(leaf.shape) > 1 else 0.1, leaf.shape)
        return (values + (len(leaf.shape) == 1)).astype(leaf.dtype)

    variables = jax.tree.map(draw, dict(template(model)))
    return variables | {"batch_stats": jax.tree.map(np.abs, variables.get("batch_stats", {}))}


def logits(model: Any, variables: Any) -> np.ndarray:
    images = np.random.default_rng(1).normal(size=(2, 64, 64, model.in_channels))
    return np.asarray(jax.jit(model.apply)(variables, images.astype(np.float32)))


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("test_resnet", {}),
        ("test_resnet", {"in_channels": 1, "output_stride": 16}),
        ("resnet20", {}),
        ("resnet9", {"depths": (1, 2), "widths": (8, 12), "stem_width": 4}),
    ],
)
def test_a_folder_is_read_as_it_was_written(
    name: str, attributes: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    model = flaxres.create_model(name, num_classes=3, **attributes)
    variables = random_variables(model)
    flaxres.save_pretrained(tmp_path / "new", model, variables, PREPROCESS, CLASSES)
    read, got, preprocess = flaxres.load_pretrained(str(tmp_path / "new"))
    assert read == model
    jax.tree.map(np.testing.assert_array_equal, got, variables)
    assert {at: getattr(preprocess, at) for at in vars(PREPROCESS)} == vars(PREPROCESS)
    assert preprocess.classes == CLASSES
    assert preprocess.repository == str(tmp_path / "new")
    assert preprocess.revision == ""
    card = (tmp_path / "new" / "README.md").read_text()
    assert ("timm.create_model" in card) == (name == "test_resnet")
    assert f"library_name: {'timm' if name == 'test_resnet' else 'flaxres'}" in card
    five, *_ = flaxres.load_pretrained(f"local-dir:{tmp_path / 'new'}", num_classes=5)
    assert five.num_classes == 5
    _, headless, _ = flaxres.load_pretrained(str(tmp_path / "new"), num_classes=0)
    assert set(got["params"]) - set(headless["params"]) == {
        "linear" if name == "resnet20" else "fc"
    }
    assert [path.name for path in (tmp_path / "new").iterdir() if path.name[0] == "."] == []


def test_a_head_of_several_layers_is_kept_but_for_its_classes(tmp_path: pathlib.Path) -> None:
    model = flaxres.create_model("convnext_atto", num_classes=3)
    variables = random_variables(model)
    squashed = dataclasses.replace(PREPROCESS, squash=True)
    flaxres.save_pretrained(tmp_path, model, variables, squashed, CLASSES)
    _, headless, _ = flaxres.load_pretrained(str(tmp_path), num_classes=0)
    head = variables["params"]["head"]
    assert headless["params"]["head"].keys() == {"norm"}
    np.testing.assert_array_equal(headless["params"]["head"]["norm"]["bias"], head["norm"]["bias"])
    card = (tmp_path / "README.md").read_text()
    assert "Both sides are resized to" in card
    scaled = model.clone(layer_scale=0.1)  # an initial value, which the weights replace
    flaxres.save_pretrained(tmp_path / "scaled", scaled, variables)
    bare = model.clone(num_classes=0)
    flaxres.save_pretrained(tmp_path / "bare", bare, headless)
    _, three, _ = flaxres.load_pretrained(str(tmp_path / "bare"), num_classes=3)
    assert three["params"]["head"]["fc"]["kernel"].shape == (320, 3)
    np.testing.assert_array_equal(three["params"]["head"]["norm"]["bias"], head["norm"]["bias"])
    _, five, _ = flaxres.load_pretrained(str(tmp_path), num_classes=5)
    assert five["params"]["head"]["fc"]["kernel"].shape == (320, 5)
    np.testing.assert_array_equal(five["params"]["head"]["norm"]["bias"], head["norm"]["bias"])


@pytest.mark.extra
@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("test_resnet", {}),
        ("test_resnet", {"in_channels": 1, "output_stride": 16}),
        pytest.param("resnet10t", {}, marks=pytest.mark.slow),
        pytest.param("resnetv2_18d", {}, marks=pytest.mark.slow),
        pytest.param("resnetv2_50x1_bit", {}, marks=pytest.mark.slow),
        pytest.param("densenet121", {}, marks=pytest.mark.slow),
        pytest.param("resnest14d", {}, marks=pytest.mark.slow),
        pytest.param("skresnet18", {"output_stride": 8}, marks=pytest.mark.slow),
        pytest.param("regnety_002", {"output_stride": 16}, marks=pytest.mark.slow),
        ("test_nfnet", {"output_stride": 16}),
        pytest.param("regnetv_040", {}, marks=pytest.mark.slow),
        pytest.param("regnetz_005", {"in_channels": 1}, marks=pytest.mark.slow),
        pytest.param("legacy_seresnet18", {}, marks=pytest.mark.slow),
        pytest.param("resnet50_clip", {"image_size": 96}, marks=pytest.mark.slow),
        pytest.param("convnext_zepto_rms_ols", {}, marks=pytest.mark.slow),
        pytest.param(
            "convnextv2_atto", {"in_channels": 1, "output_stride": 16}, marks=pytest.mark.slow
        ),
    ],
)
def test_timm_loads_a_folder(name: str, attributes: dict[str, int], tmp_path: pathlib.Path) -> None:
    try:
        torch, timm = torch_and_timm()
    except ModuleNotFoundError:
        pytest.skip("needs the extra `parity`")
    model = flaxres.create_model(name, num_classes=3, **attributes)
    variables = random_variables(model)
    flaxres.save_pretrained(tmp_path, model, variables, PREPROCESS, CLASSES)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    config = timm.data.resolve_data_config(model=theirs)
    assert list(config["input_size"]) == [model.in_channels, 64, 64]
    assert config["interpolation"] == "bicubic"
    assert (tuple(config["mean"]), tuple(config["std"])) == (PREPROCESS.mean, PREPROCESS.std)
    assert math.floor(64 / config["crop_pct"]) == 72
    assert theirs.pretrained_cfg["label_names"] == list(CLASSES)
    images = np.random.default_rng(1).normal(size=(2, 64, 64, model.in_channels))
    with torch.no_grad():
        expected = theirs(torch.tensor(images.transpose(0, 3, 1, 2).astype(np.float32))).numpy()
    ours = logits(model, variables)
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.extra
def test_a_folder_of_timm_is_read(tmp_path: pathlib.Path) -> None:
    try:
        torch, timm = torch_and_timm()
    except ModuleNotFoundError:
        pytest.skip("needs the extra `parity`")
    theirs = timm.create_model("test_resnet", num_classes=4).eval()
    timm.models.save_for_hf(theirs, tmp_path, safe_serialization=True)
    model, variables, preprocess = flaxres.load_pretrained(str(tmp_path))
    assert model.num_classes == 4
    side = theirs.pretrained_cfg["input_size"][-1]
    assert preprocess.size == side
    images = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
    ours = logits(model, variables)
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_command_line_writes_a_folder(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = flaxres.create_model("test_resnet", num_classes=3)
    variables = random_variables(model)
    known, unknown, folder = (
        str(tmp_path / name) for name in ("a.safetensors", "b.safetensors", "c")
    )
    flaxres.save_weights(known, variables, model, PREPROCESS, CLASSES)
    flaxres.save_weights(unknown, variables, model)
    assert main(["convert", known, folder, "--hub", "--license", "mit"]) == 0, (
        capfd.readouterr().err
    )
    _, got, preprocess = flaxres.load_pretrained(folder)
    jax.tree.map(np.testing.assert_array_equal, got, variables)
    assert (preprocess.resize, preprocess.exif, preprocess.classes) == (72, True, CLASSES)
    assert "license: mit" in (tmp_path / "c" / "README.md").read_text()
    assert main(["convert", unknown, folder, "--hub"]) == 2
    assert "does not state its preprocessing, which --hub needs" in capfd.readouterr().err
    assert main(["convert", known, folder, "--license", "mit"]) == 2
    assert "--license mit needs --hub" in capfd.readouterr().err


def test_crop_shares_give_timm_the_same_resize() -> None:
    for size in (32, 96, 224, 288, 299, 320, 448):
        for resize in range(size, 2 * size):
            assert math.floor(size / hub_folder._crop_share(size, resize)) == resize


def test_every_name_is_recognised() -> None:
    for name in flaxres.list_models():
        model = flaxres.create_model(name, num_classes=7, dtype=jnp.bfloat16, scan_blocks=True)
        found = hub_folder.architecture(model)
        assert flaxres.create_model(found, num_classes=7, dtype=jnp.bfloat16, scan_blocks=True) == (
            model
        )


def test_mistakes_are_named(tmp_path: pathlib.Path) -> None:
    model = flaxres.create_model("test_resnet", num_classes=3)
    variables = random_variables(model)
    other = flaxres.create_model("resnet18", num_classes=3, depths=(1, 1, 1, 1), v1=True)
    with pytest.raises(InputError, match="none of flaxres.list_models.*differs from .* in depths"):
        flaxres.save_pretrained(tmp_path, other, {})
    with pytest.raises(InputError, match="classes has 2 names, the model 3 outputs"):
        flaxres.save_pretrained(tmp_path, model, variables, classes=("cat", "dog"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file' can't be written .*give another folder"):
        flaxres.save_pretrained(tmp_path / "file", model, variables)
    with pytest.raises(InputError, match="has no config.json: give one that save_pretrained"):
        flaxres.load_pretrained(str(tmp_path))
    flaxres.save_pretrained(tmp_path / "new", model, variables)
    path = tmp_path / "new" / "config.json"
    sound = json.loads(path.read_text())
    for change, message in (
        ({"architecture": "vit_tiny"}, "unknown architecture of .*new.* 'vit_tiny'"),
        ({"model_args": {"act_layer": "silu"}}, "model_args has act_layer='silu'"),
        ({"architecture": "resnet18"}, "are of a network with shortcut='average'"),
    ):
        path.write_text(json.dumps(sound | change))
        with pytest.raises(InputError, match=message):
            flaxres.load_pretrained(str(tmp_path / "new"))
    path.write_text(json.dumps(sound))
    (tmp_path / "new" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has no model.safetensors"):
        flaxres.load_pretrained(str(tmp_path / "new"))


def test_a_head_that_the_config_contradicts_is_refused(tmp_path: pathlib.Path) -> None:
    model = flaxres.create_model("test_resnet", num_classes=3)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    with pytest.raises(flaxres.InputError, match="don't fit the model; 2 misshapen"):
        flaxres.save_pretrained(tmp_path, model.clone(num_classes=5), variables)
    flaxres.save_pretrained(tmp_path, model, variables, classes=("a", "b", "c"))
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"num_classes": 3', '"num_classes": 4'))
    with pytest.raises(flaxres.InputError, match="states 4 classes, .* weights has 3"):
        flaxres.load_pretrained(str(tmp_path))
