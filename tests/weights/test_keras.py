"""Weights of Keras and KerasHub, in files and folders of their form.

`python -m benchmarks.libraries` compares with the libraries themselves.
"""

import json
import pathlib
import re
import zipfile
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxres
from flaxres.errors import InputError
from flaxres.weights import files
from flaxres.weights.transfer import torch_from_variables

RNG = np.random.default_rng(0)
NORM = ("gamma", "beta", "moving_mean", "moving_variance")
MODEL = flaxres.ResNet(depths=(1, 1), widths=(4, 8), stem_width=4, num_classes=3, v1=True)
SMALL: dict[str, Any] = {"depths": (2, 1), "widths": (4, 8), "num_classes": 3}
IMAGES = RNG.normal(size=(2, 32, 32, 3)).astype(np.float32)


def random(model: Any) -> Any:
    """Returns random variables of a network."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    return jax.tree.map(lambda leaf: RNG.uniform(0.1, 0.3, leaf.shape).astype(leaf.dtype), shapes)


def convolution(size: int, channels: int, features: int, bias: bool) -> dict[str, np.ndarray]:
    kernel = RNG.normal(0, 0.2, (size, size, channels, features)).astype(np.float32)
    extra = RNG.normal(size=features).astype(np.float32)
    return {"kernel": kernel} | ({"bias": extra} if bias else {})


def norm(features: int) -> dict[str, np.ndarray]:
    return {name: RNG.uniform(0.5, 1.5, features).astype(np.float32) for name in NORM}


def layers(applications: bool) -> dict[str, dict[str, np.ndarray]]:
    """Returns the layers of MODEL by the names of keras.applications or KerasHub."""
    result = {"conv1_conv": convolution(7, 3, 4, applications), "conv1_bn": norm(4)}
    for stage, (channels, width) in enumerate(((4, 4), (16, 8))):
        block = f"conv{stage + 2}_block1" if applications else f"stack{stage}_block0"
        for part, size, source, target in (
            (0, 1, channels, 4 * width),
            (1, 1, channels, width),
            (2, 3, width, width),
            (3, 1, width, 4 * width),
        ):
            result[f"{block}_{part}_conv"] = convolution(size, source, target, applications)
            result[f"{block}_{part}_bn"] = norm(target)
    dense = RNG.normal(size=(32, 3)).astype(np.float32)
    return result | {"predictions": {"kernel": dense, "bias": np.ones(3, np.float32)}}


def of_keras_hub(state: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Returns a state dictionary by KerasHub's names of layers and variables.

    Of a network with a deep stem and averaging shortcuts, or of a pre-activation network.
    """
    deep = {"conv1.0": 1, "conv1.1": 1, "conv1.3": 2, "conv1.4": 2, "conv1.6": 3, "bn1": 3}
    result: dict[str, dict[str, np.ndarray]] = {}
    for name, array in state.items():
        layer, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        kind = "conv" if array.ndim == 4 else "bn"
        if match := re.fullmatch(r"layer(\d)\.(\d)\.(\w+?)(\d?)(\.\d)?", layer):
            part = match[4] or "0"
            place = f"stack{int(match[1]) - 1}_block{match[2]}_{part}_{kind}"
        elif match := re.fullmatch(r"stages\.(\d)\.blocks\.(\d)\.(\w+?)(\d?)(\.conv)?", layer):
            part = {"conv": match[4], "downsample": "0"}.get(match[3])
            part = part or ("pre_activation" if match[4] == "1" else str(int(match[4]) - 1))
            place = f"stack{match[1]}_block{match[2]}_{part}_{kind}"
        else:
            names = {"fc": "predictions", "head.fc": "predictions", "norm": "post_bn"}
            names |= {"stem.conv": "conv1_conv"}
            place = names.get(layer) or f"conv{deep[layer]}_{kind}"
        dense = {"weight": "kernel", "bias": "bias"}
        norms = dict(zip(("weight", "bias", "running_mean", "running_var"), NORM, strict=True))
        is_kernel = kind == "conv" or place == "predictions"
        variable = (dense if is_kernel else norms)[leaf]
        if variable == "kernel":
            array = array.reshape(array.shape[:2]).T if place == "predictions" else array
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        result.setdefault(place, {})[variable] = array
    return result


def write_numbered(path: pathlib.Path, content: dict[str, dict[str, np.ndarray]]) -> None:
    """Writes layers as `save_weights` of Keras 3 does, with the state of an optimizer."""
    with h5py.File(path, "w") as file:
        for i, (name, arrays) in enumerate(content.items()):
            group = file.create_group(f"layers/layer_{i}/vars")
            group.attrs["name"] = name
            order = [name for name in ("kernel", "bias", *NORM) if name in arrays]
            for number, variable in enumerate(order):
                group[str(number)] = arrays[variable]
        file.create_group("layers/activation/vars").attrs["name"] = "relu"
        file["layers/dropout/seed_generator/vars/0"] = np.zeros(2, np.uint32)
        file["optimizer/vars/0"] = np.zeros(())


def write_named(
    path: pathlib.Path, content: dict[str, dict[str, np.ndarray]], outer: str = ""
) -> None:
    """Writes layers as Keras's older .h5 files have them."""
    with h5py.File(path, "w") as file:
        for name, arrays in content.items():
            for variable, array in arrays.items():
                file[f"{outer}{name}/{name}/{variable}:0"] = array
        file["optimizer_weights/adam/iteration:0"] = np.zeros(())


def test_the_forms_of_a_file_hold_the_same_weights(tmp_path: pathlib.Path) -> None:
    content = layers(applications=True)
    write_numbered(tmp_path / "a.weights.h5", content)
    write_named(tmp_path / "b.h5", content)
    write_named(tmp_path / "c.h5", content, "model_weights/")
    with zipfile.ZipFile(tmp_path / "d.keras", "w") as archive:
        archive.write(tmp_path / "a.weights.h5", "model.weights.h5")
    first, metadata = files.read(tmp_path / "a.weights.h5")
    assert metadata == {"flaxres.v1": "True"}
    for name in ("b.h5", "c.h5", "d.keras"):
        arrays, _ = files.read(tmp_path / name)
        jax.tree.map(np.testing.assert_array_equal, arrays, first)
    variables = flaxres.load_weights(tmp_path / "a.weights.h5", MODEL)
    assert np.isfinite(MODEL.apply(variables, IMAGES)).all()


def test_biases_and_another_epsilon_are_part_of_the_statistics(tmp_path: pathlib.Path) -> None:
    content = layers(applications=True)
    content["conv1_bn"]["moving_variance"][:] = 1e-6  # an epsilon matters here
    write_numbered(tmp_path / "a.weights.h5", content)
    variables = flaxres.load_weights(tmp_path / "a.weights.h5", MODEL)
    stem = MODEL.apply(variables, IMAGES, features=True)["stem"]
    bare = jax.lax.conv_general_dilated(
        IMAGES,
        content["conv1_conv"]["kernel"],
        (2, 2),
        [(3, 3), (3, 3)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    scale, beta, mean, var = (content["conv1_bn"][name] for name in NORM)
    biased = bare + content["conv1_conv"]["bias"]
    expected = np.maximum((biased - mean) / np.sqrt(var + 1.001e-5) * scale + beta, 0)
    np.testing.assert_allclose(stem, expected, rtol=1e-4, atol=1e-3)


def test_a_network_of_the_other_stride_is_refused(tmp_path: pathlib.Path) -> None:
    for name, applications in (("a", True), ("b", False)):
        write_numbered(tmp_path / f"{name}.weights.h5", layers(applications))
    other = MODEL.clone(v1=False)
    with pytest.raises(InputError, match="create it with v1=True"):
        flaxres.load_weights(tmp_path / "a.weights.h5", other)
    flaxres.load_weights(tmp_path / "b.weights.h5", other)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"conv2_block1_preact_bn": norm(4), "post_bn": norm(4)},
            "Keras's ResNetV2, which strides",
        ),
        ({"res2a_branch2a": convolution(1, 4, 4, True)}, "before 2.2.4"),
        (
            {"block1_conv1": convolution(3, 3, 64, True)},
            "a layer 'block1_conv1' of bias, kernel",
        ),
    ],
)
def test_other_networks_of_keras_are_named(
    changed: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    write_named(tmp_path / "a.h5", layers(applications=True) | changed)
    with pytest.raises(InputError, match=message):
        flaxres.load_weights(tmp_path / "a.h5", MODEL)


@pytest.mark.parametrize("name", ["a.h5", "a.keras", "a.msgpack"])
def test_what_is_no_such_file_is_refused(name: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / name).write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"can't be read .*: the rule is"):
        files.read(tmp_path / name)


def test_arrays_outside_of_the_file_are_not_read(tmp_path: pathlib.Path) -> None:
    (tmp_path / "other.bin").write_bytes(bytes(16))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x/x/kernel:0", (4,), "f4", external=[(tmp_path / "other.bin", 0, 16)])
    with pytest.raises(InputError, match="is stored outside of the file"):
        files.read(tmp_path / "a.h5")


CONFIG = {
    "module": "keras_hub.src.models.resnet.resnet_backbone",
    "class_name": "ResNetBackbone",
    "config": {
        "input_conv_filters": [4],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [4, 8],
        "stackwise_num_blocks": [1, 1],
        "stackwise_num_strides": [1, 2],
        "block_type": "bottleneck_block",
        "use_pre_activation": False,
    },
}
CONVERTER = {"config": {"image_size": [48, 48], "scale": 1 / 127.5, "offset": -1.0}}


def save_keras_hub(
    folder: pathlib.Path, task: bool = True, content: Any = None, **changed: Any
) -> str:
    """Writes a folder as `save_to_preset` does."""
    folder.mkdir()
    content = content or layers(applications=False)
    head = {"predictions": content.pop("predictions")}
    config = CONFIG | {"config": CONFIG["config"] | changed}
    (folder / "config.json").write_text(json.dumps(config))
    write_numbered(folder / "model.weights.h5", content)
    if task:
        write_numbered(folder / "task.weights.h5", head)
        settings = {"config": {"num_classes": 3, "pooling": "avg", "preprocessor": {"a": 1}}}
        (folder / "task.json").write_text(json.dumps(settings))
        (folder / "image_converter.json").write_text(json.dumps(CONVERTER))
    return str(folder)


def test_a_folder_of_keras_hub_is_read(tmp_path: pathlib.Path) -> None:
    folder = save_keras_hub(tmp_path / "preset")
    model, variables, preprocess = flaxres.load_pretrained(folder)
    assert (model.depths, model.widths, model.num_classes) == ((1, 1), (4, 8), 3)
    assert (preprocess.size, preprocess.mean) == (48, (0.5, 0.5, 0.5))
    assert model.apply(variables, IMAGES).shape == (2, 3)
    arrays, _ = files.read(tmp_path / "preset" / "model.weights.h5")
    ours = torch_from_variables(variables)
    assert all(np.array_equal(ours[name], array) for name, array in arrays.items())
    backbone, _, _ = flaxres.load_pretrained(save_keras_hub(tmp_path / "backbone", task=False))
    assert backbone.num_classes == 0
    headless, _, _ = flaxres.load_pretrained(folder, num_classes=0, dtype=jnp.bfloat16)
    assert (headless.num_classes, headless.dtype) == (0, jnp.bfloat16)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"block_type": "basic_block_vd"}, "a ResNetBackbone of basic_block_vd"),
        ({"stackwise_num_strides": [2, 2]}, "strides \\[2, 2\\]: no network of flaxres"),
        ({"stackwise_num_filters": None}, "is not in the form of its library"),
    ],
)
def test_other_folders_of_keras_hub_are_named(
    changed: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(InputError, match=message):
        flaxres.load_pretrained(save_keras_hub(tmp_path / "preset", **changed))


@pytest.mark.parametrize(
    ("model", "changed"),
    [
        (
            flaxres.ResNet(**SMALL, stem="deep", stem_width=4, shortcut="average"),
            {
                "block_type": "bottleneck_block_vd",
                "input_conv_filters": [4, 4, 8],
                "input_conv_kernel_sizes": [3, 3, 3],
            },
        ),
        (
            flaxres.ResNetV2(**SMALL | {"widths": (16, 32)}, stem_width=4),
            {"use_pre_activation": True, "block_type": "bottleneck_block"},
        ),
    ],
)
def test_the_other_networks_of_keras_hub_are_read(
    model: Any, changed: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    expected = random(model)
    content = of_keras_hub(torch_from_variables(expected))
    changed = {"stackwise_num_blocks": [2, 1]} | changed
    folder = save_keras_hub(tmp_path / "preset", content=content, **changed)
    found, loaded, _ = flaxres.load_pretrained(folder)
    assert found == model
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_the_images_of_a_backbone_are_converted_as_its_folder_says(tmp_path: pathlib.Path) -> None:
    folder = save_keras_hub(tmp_path / "backbone", task=False)
    assert flaxres.load_pretrained(folder)[2].size == 224
    (tmp_path / "backbone" / "image_converter.json").write_text(json.dumps(CONVERTER))
    assert flaxres.load_pretrained(folder)[2].size == 48
    padded = {"config": CONVERTER["config"] | {"pad_to_aspect_ratio": True}}
    (tmp_path / "backbone" / "image_converter.json").write_text(json.dumps(padded))
    with pytest.raises(InputError, match="not in the form of its library .*pad_to_aspect_ratio"):
        flaxres.load_pretrained(folder)


def test_an_unknown_attribute_of_a_folder_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match="unknown attribute of ResNet 'widht'"):
        flaxres.load_pretrained(save_keras_hub(tmp_path / "preset"), widht=3)


@pytest.mark.parametrize(
    ("layer", "changed"),
    [("conv1_conv", {"bias": np.zeros(4, np.float32)}), ("conv1_bn", {"gamma": np.ones(4)})],
)
def test_a_layer_of_keras_without_all_variables_is_named(
    layer: str, changed: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    write_named(tmp_path / "a.h5", layers(applications=True) | {layer: changed})
    with pytest.raises(InputError, match=f"a layer '{layer}' of {next(iter(changed))}: the rule"):
        files.read(tmp_path / "a.h5")


def test_damaged_files_of_keras_are_refused(tmp_path: pathlib.Path) -> None:
    """Each in one line, whatever h5py raises, if the damage does not hide in an array."""
    write_named(tmp_path / "whole.h5", layers(applications=True))
    whole = bytearray((tmp_path / "whole.h5").read_bytes())
    rng, refused = np.random.default_rng(0), 0
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, 4096, 5):
            damaged[place] = rng.integers(256)
        (tmp_path / "a.h5").write_bytes(damaged[: rng.integers(3000, len(whole))])
        try:
            files.read(tmp_path / "a.h5")
        except InputError as error:
            refused += "\n" not in str(error)
    assert refused >= 30
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(InputError, match="hold no layers"):
        files.read(tmp_path / "empty.h5")
