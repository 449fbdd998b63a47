"""Weights: names, round trips, adaptation, and files that are refused without running them."""

import json
import pathlib
import pickle
import re
import struct
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import flaxres
from flaxres.cli import main
from flaxres.errors import InputError
from flaxres.inference.fold import folded
from flaxres.models.stage import SCANNED, stack_blocks, unstack_blocks
from flaxres.weights.refusals import WeightsError
from flaxres.weights.transfer import torch_from_variables, variables_from_torch

X = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)


def random_variables(model: Any, seed: int = 0) -> Any:
    """Returns random variables, statistics included."""
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, 32, 32, model.in_channels))
    )
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.01, 0.1, leaf.shape), leaf.dtype), shapes
    )


def equal(a: Any, b: Any) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(
        jax.tree.map(lambda x, y: bool((x == y).all()), a, b)
    )


@pytest.mark.parametrize(
    "name",
    [
        "resnet20",
        "resnet9",
        "resnet10t",
        "seresnet18",
        "resnetv2_164",
        "skresnet18",
        "regnety_002",
        "convnextv2_atto",
        pytest.param("densenet121", marks=pytest.mark.slow),
    ],
)
def test_the_round_trip_is_exact(name: str, tmp_path: pathlib.Path) -> None:
    depths = flaxres.create_model(name).depths  # type: ignore[attr-defined]
    model: Any = flaxres.create_model(name, depths=(1,) * len(depths))
    variables = random_variables(model)
    flaxres.save_weights(tmp_path / "w.safetensors", variables, model)
    assert equal(flaxres.load_weights(tmp_path / "w.safetensors", model), variables)


def test_names_and_layouts_are_pytorchs() -> None:
    state = torch_from_variables(random_variables(flaxres.ResNet18()))
    assert state["conv1.weight"].shape == (64, 3, 7, 7)
    assert state["layer2.0.downsample.1.running_var"].shape == (128,)
    assert state["fc.weight"].shape == (1000, 512)
    assert state["bn1.num_batches_tracked"].dtype == np.int64
    assert len(state) == 122  # torchvision's resnet18


def test_prefixes_counters_and_other_head_names_are_understood() -> None:
    model = flaxres.ResNet20()
    variables = random_variables(model)
    state = {
        f"module.{name.replace('linear', 'fc')}": value
        for name, value in torch_from_variables(variables).items()
    }
    assert equal(variables_from_torch(state, model), variables)


@pytest.mark.slow
def test_old_densenet_files_are_understood() -> None:
    model: Any = flaxres.create_model("densenet121", num_classes=2)
    variables = random_variables(model)
    old = {
        re.sub(r"(denselayer\d+\.)(norm|conv)(\d)", r"\1\2.\3", name): value
        for name, value in torch_from_variables(variables).items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    assert equal(variables_from_torch(old, model), variables)


def test_names_of_the_authors_of_convnext_are_understood() -> None:
    model: Any = flaxres.ConvNeXt(
        depths=(1, 2), widths=(8, 16), layer_scale=None, response_norm=True, num_classes=3
    )
    variables = random_variables(model)
    rules = (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"\.blocks", ""),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"mlp\.grn\.weight", "grn.gamma"),
        (r"mlp\.grn\.bias", "grn.beta"),
        (r"^head\.norm", "norm"),
        (r"^head\.fc", "head"),
    )
    theirs = {}
    for name, value in torch_from_variables(variables).items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        theirs[name] = value[None, None, None] if ".grn." in name else value
    assert {"norm.weight", "stages.1.1.grn.gamma", "downsample_layers.1.1.bias"} <= theirs.keys()
    assert equal(variables_from_torch(theirs, model), variables)


def test_scanned_blocks_take_and_give_the_same_files(tmp_path: pathlib.Path) -> None:
    model, scanned = flaxres.ResNet32(), flaxres.ResNet32(scan_blocks=True)
    variables = random_variables(model)
    flaxres.save_weights(tmp_path / "w.safetensors", variables, model)
    stacked = flaxres.load_weights(tmp_path / "w.safetensors", scanned)
    assert stacked["params"]["layer1"].keys() == {"0", SCANNED}
    assert jax.tree.structure(stacked) == jax.tree.structure(
        jax.eval_shape(scanned.init, jax.random.key(0), X)
    )
    assert equal(unstack_blocks(stacked), variables)
    assert equal(stack_blocks(variables, stacked), stacked)
    np.testing.assert_allclose(
        jax.jit(scanned.apply)(stacked, X), jax.jit(model.apply)(variables, X), rtol=1e-5, atol=1e-5
    )
    flaxres.save_weights(tmp_path / "again.safetensors", stacked, scanned)
    assert equal(
        *(safetensors.numpy.load_file(tmp_path / f"{name}.safetensors") for name in ("again", "w"))
    )


def test_a_head_is_reset_and_a_first_convolution_adapted() -> None:
    state = torch_from_variables(random_variables(flaxres.ResNet20()))
    with pytest.raises(InputError, match=r"1 misshapen: linear.weight|2 misshapen: linear"):
        variables_from_torch(state, flaxres.ResNet20(num_classes=7))
    model = flaxres.ResNet20(num_classes=7, in_channels=1)
    variables = variables_from_torch(state, model, adapt=True)
    assert variables["params"]["linear"]["kernel"].shape == (64, 7)
    gray = jnp.repeat(jnp.asarray(X[..., :1]), 3, -1)
    three = flaxres.ResNet20().apply(
        variables_from_torch(state, flaxres.ResNet20()), gray, features=True
    )
    np.testing.assert_allclose(
        model.apply(variables, gray[..., :1], features=True)["pooled"],
        three["pooled"],
        rtol=1e-4,
        atol=1e-4,
    )


def test_every_leaf_that_does_not_fit_is_named_by_both_names(tmp_path: pathlib.Path) -> None:
    flaxres.save_weights(
        tmp_path / "w.safetensors", random_variables(flaxres.ResNet20()), flaxres.ResNet20()
    )
    with pytest.raises(
        InputError, match=r"missing: layer1.3.bn1.running_mean \(batch_stats.layer1.3.bn1.mean\)"
    ):
        flaxres.load_weights(tmp_path / "w.safetensors", flaxres.ResNet32())
    with pytest.raises(WeightsError) as refused:
        flaxres.load_weights(tmp_path / "w.safetensors", flaxres.ResNet32())
    assert len(refused.value.missing) == 6 * 10
    assert "layer3.4.conv2.weight (params.layer3.4.conv2.kernel)" in refused.value.missing
    with pytest.raises(InputError, match=r"unexpected: linear.bias, linear.weight"):
        flaxres.load_weights(tmp_path / "w.safetensors", flaxres.ResNet20(num_classes=0))
    with pytest.raises(InputError, match=r"linear.*\(10,\) in the file, \(7,\) in the model"):
        flaxres.load_weights(tmp_path / "w.safetensors", flaxres.ResNet20(num_classes=7))


def test_v1_weights_are_refused_by_v1_5_where_the_file_says_so(tmp_path: pathlib.Path) -> None:
    model = flaxres.ResNet(depths=(1,), widths=(8,), stem_width=8, num_classes=3, v1=True)
    flaxres.save_weights(tmp_path / "w.safetensors", random_variables(model), model)
    with pytest.raises(InputError, match="of a network with v1=True, the model has v1=False"):
        flaxres.load_weights(tmp_path / "w.safetensors", model.clone(v1=False))


def test_fault_32_damaged_files_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "w.safetensors"
    flaxres.save_weights(path, random_variables(flaxres.ResNet20()), flaxres.ResNet20())
    whole = path.read_bytes()
    for content in (
        b"",
        whole[:5],
        whole[:500],
        whole[:-100],
        struct.pack("<Q", 1 << 60) + whole[8:],
        b"x" * 1000,
        struct.pack("<Q", 20) + b"{" * 500,
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match="weights .*w.safetensors"):
            flaxres.load_weights(path, flaxres.ResNet20())
    with pytest.raises(InputError, match="do not exist"):
        flaxres.load_weights(tmp_path / "nothing.safetensors", flaxres.ResNet20())
    (tmp_path / "w.onnx").write_bytes(b"")
    with pytest.raises(InputError, match="the rule is .safetensors"):
        flaxres.load_weights(tmp_path / "w.onnx", flaxres.ResNet20())


class Malicious:
    def __reduce__(self) -> Any:
        return (pathlib.Path.touch, (pathlib.Path("/tmp/flaxres-was-here"),))


@pytest.mark.extra
def test_fault_32_a_pickle_with_code_is_refused_and_not_run(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    trace = pathlib.Path("/tmp/flaxres-was-here")
    trace.unlink(missing_ok=True)
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"conv1.weight": Malicious()}))
    with pytest.raises(InputError, match="are refused, nothing in them was run"):
        flaxres.load_weights(tmp_path / "w.pth", flaxres.ResNet20())
    assert not trace.exists()


@pytest.mark.extra
def test_the_ema_of_a_training_checkpoint_is_taken(tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    model = flaxres.ResNet20()
    plain, ema = random_variables(model, 0), random_variables(model, 5)
    states = [
        jax.tree.map(lambda value: torch.from_numpy(np.array(value)), torch_from_variables(v))
        for v in (plain, ema)
    ]
    torch.save(
        {"state_dict": states[0], "state_dict_ema": states[1], "epoch": 3}, tmp_path / "w.pth"
    )
    assert equal(flaxres.load_weights(tmp_path / "w.pth", model), ema)
    assert equal(flaxres.load_weights(tmp_path / "w.pth", model, ema=False), plain)


@pytest.mark.extra
@pytest.mark.parametrize("name", ["resnet20", "resnet32"])
def test_published_weights_give_their_logits(
    name: str, shared: pathlib.Path, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    import io
    import tarfile

    from PIL import Image

    (weights,) = shared.glob(f"{name}-*.th")
    converted = tmp_path / "w.safetensors"
    assert main(["convert", str(weights), str(converted), "--model", name]) == 0, (
        capfd.readouterr().err
    )
    model: Any = flaxres.create_model(name)
    variables = flaxres.load_weights(converted, model)
    assert equal(flaxres.load_weights(weights, model), variables)
    reference = np.load(shared / "cifar10_reference_logits.npz")
    images: dict[str, Any] = {}
    wanted = {str(file) for file in reference["files"]}
    with tarfile.open(shared / "cifar10_jpg.tar.xz") as tar:
        for member in tar:
            if any(member.name.endswith(file) for file in wanted):
                file = tar.extractfile(member)
                assert file is not None
                images[next(f for f in wanted if member.name.endswith(f))] = np.asarray(
                    Image.open(io.BytesIO(file.read())).convert("RGB")
                )
    stacked = np.stack([images[str(file)] for file in reference["files"]]) / 255
    normalised = ((stacked - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).astype(np.float32)
    np.testing.assert_allclose(
        jax.jit(model.apply)(variables, normalised), reference[name], atol=1e-3
    )


def test_a_run_becomes_a_file_of_weights(
    data_dir: str, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    digits = str(pathlib.Path(__file__).parents[2] / "configs" / "digits.py")
    out = str(tmp_path / "w.safetensors")
    small = ["--train.devices", "1", "--model.depths", "1", "1", "1"]
    words = ["--data.data-dir", data_dir, "--train.steps", "2", "--train.tensorboard", "False"]
    words += small
    assert main(["train", "--config", digits, "--workdir", str(tmp_path / "run"), *words]) == 0
    assert main(["convert", str(tmp_path / "run"), out]) == 0, capfd.readouterr().err
    capfd.readouterr()
    reports = []
    for origin in (
        ["--workdir", str(tmp_path / "run")],
        ["--config", digits, "--weights", out, "--data.data-dir", data_dir, *small],
    ):
        assert main(["evaluate", *origin]) == 0
        report = json.loads(capfd.readouterr().out)
        report.pop("step", None)
        reports.append(report)
    assert reports[0] == reports[1]


def test_convert_refuses_in_one_line(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, out = str(tmp_path / "w.safetensors"), str(tmp_path / "o.safetensors")
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, source)
    for words, message in (
        (["--model", "resnet5O"], "unknown model 'resnet5O'"),
        (["--model", "resnet18"], "missing: "),
        ([], "don't name their network: give --model"),
    ):
        assert main(["convert", source, out, *words]) == 2
        err = capfd.readouterr().err
        assert message in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("depths", [(3, 3, 3, 3), (1, 1, 1, 1)])
def test_stages_that_are_alike_are_not_taken_for_blocks(
    depths: tuple[int, ...], tmp_path: pathlib.Path
) -> None:
    model = flaxres.ConvNeXt(depths=depths, widths=(16,) * 4, num_classes=3, scan_blocks=True)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    flaxres.save_weights(tmp_path / "w.safetensors", variables, model)
    assert equal(flaxres.load_weights(tmp_path / "w.safetensors", model), variables)


def test_only_variables_and_classes_of_the_network_are_saved(tmp_path: pathlib.Path) -> None:
    three, five = (flaxres.create_model("test_resnet", num_classes=n) for n in (3, 5))
    variables = random_variables(three)
    with pytest.raises(WeightsError, match="variables don't fit the model; 2 misshapen: fc"):
        flaxres.save_weights(tmp_path / "w.safetensors", variables, five)
    with pytest.raises(InputError, match="classes has 1 names, the model 3 outputs"):
        flaxres.save_weights(tmp_path / "w.safetensors", variables, three, classes=("a",))
    with pytest.raises(WeightsError, match="missing"):
        flaxres.save_weights(tmp_path / "w.safetensors", {"params": variables["params"]}, three)
    assert not (tmp_path / "w.safetensors").exists()


def test_a_classifier_is_loaded_without_its_classes(tmp_path: pathlib.Path) -> None:
    model = flaxres.create_model("test_resnet", num_classes=3)
    variables, file = random_variables(model), tmp_path / "w.safetensors"
    flaxres.save_weights(file, variables, model)
    backbone = flaxres.create_model("test_resnet", num_classes=0)
    loaded = flaxres.load_weights(file, backbone, adapt=True)
    assert equal(loaded["params"], {k: v for k, v in variables["params"].items() if k != "fc"})


def test_a_network_that_takes_no_64_pixels_is_saved_and_loaded(tmp_path: pathlib.Path) -> None:
    model = flaxres.ResNet9(depths=(1,) * 7, widths=(4,) * 7, stem_width=4)
    assert model.extents(64) is None
    assert model.probe_side == 128
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 128, 128, 3)))
    flaxres.save_weights(tmp_path / "w.safetensors", variables, model)
    assert equal(flaxres.load_weights(tmp_path / "w.safetensors", model), variables)
    assert folded(model, variables)[0].keys() == variables.keys()
    flaxres.nnx.from_linen(model, variables)
