"""Weights of Keras, KerasHub, transformers and CLIP, in files and folders of their form.

`python -m benchmarks.libraries` compares with the libraries themselves.
"""

import json
import pathlib
import zipfile
from typing import Any

import flax.serialization
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxres
from flaxres.errors import InputError
from flaxres.weights import files
from flaxres.weights.renamed import renamed
from flaxres.weights.transfer import torch_from_variables

RNG = np.random.default_rng(0)
NORM = ("gamma", "beta", "moving_mean", "moving_variance")
MODEL = flaxres.ResNet(depths=(1, 1), widths=(4, 8), stem_width=4, num_classes=3, v1=True)
IMAGES = RNG.normal(size=(2, 32, 32, 3)).astype(np.float32)


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


def write_numbered(path: pathlib.Path, content: dict[str, dict[str, np.ndarray]]) -> None:
    """Writes layers as `save_weights` of Keras 3 does, with the state of an optimizer."""
    with h5py.File(path, "w") as file:
        for i, (name, arrays) in enumerate(content.items()):
            group = file.create_group(f"layers/layer_{i}/vars")
            group.attrs["name"] = name
            for number, array in enumerate(arrays.values()):
                group[str(number)] = array
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
        ({"block1_conv1": convolution(3, 3, 64, True)}, "with a layer 'block1_conv1': the rule"),
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


def save_keras_hub(folder: pathlib.Path, task: bool = True, **changed: Any) -> str:
    """Writes a folder as `save_to_preset` does."""
    folder.mkdir()
    content = layers(applications=False)
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


def test_an_unknown_attribute_of_a_folder_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match="unknown attribute of ResNet 'widht'"):
        flaxres.load_pretrained(save_keras_hub(tmp_path / "preset"), widht=3)


def transformers_names(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays of MODEL by transformers' names."""
    kinds = {"conv": "convolution", "bn": "normalization"}
    result = {}
    for name, array in state.items():
        words = name.split(".")
        last = words[-1]
        if words[0] == "fc":
            place = "classifier.1"
        elif words[0] in ("conv1", "bn1"):
            place = f"resnet.embedder.embedder.{kinds[words[0][:-1]]}"
        else:
            outer = f"resnet.encoder.stages.{int(words[0][-1]) - 1}.layers.{words[1]}"
            inner = words[2]
            place = (
                f"{outer}.shortcut.{('convolution', 'normalization')[int(words[3])]}"
                if inner == "downsample"
                else f"{outer}.layer.{int(inner[-1]) - 1}.{kinds[inner[:-1]]}"
            )
        result[f"{place}.{last}"] = array
    return result


@pytest.fixture(scope="module")
def variables() -> Any:
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), IMAGES)
    return jax.tree.map(lambda leaf: RNG.uniform(0.1, 0.3, leaf.shape).astype(leaf.dtype), shapes)


def test_a_folder_of_transformers_is_read(variables: Any, tmp_path: pathlib.Path) -> None:
    arrays = transformers_names(torch_from_variables(variables))
    files.write(tmp_path / "model.safetensors", arrays, {"format": "pt"})
    config = {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "depths": [1, 1],
        "hidden_sizes": [16, 32],
        "embedding_size": 4,
        "downsample_in_bottleneck": True,
        "id2label": {"1": "bee", "0": "ant", "2": "cat"},
    }
    processor = {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    model, loaded, preprocess = flaxres.load_pretrained(str(tmp_path))
    assert model == MODEL
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert (preprocess.classes, preprocess.resize) == (("ant", "bee", "cat"), 256)
    assert flaxres.load_pretrained(str(tmp_path), num_classes=0)[0].num_classes == 0
    for changed, message in (
        ({"model_type": "vit"}, "holds a vit of transformers"),
        ({"hidden_act": "silu"}, "a resnet with {'hidden_act': 'silu'}"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | changed))
        with pytest.raises(InputError, match=message):
            flaxres.load_pretrained(str(tmp_path))


def test_flaxs_msgpack_of_transformers_is_read(variables: Any, tmp_path: pathlib.Path) -> None:
    flat = transformers_names(torch_from_variables(variables))
    tree: dict[str, Any] = {}
    for name, array in flat.items():
        words = name.replace(".layer.", ".layer.layer_").split(".")
        if words[-1] == "num_batches_tracked":
            continue
        statistic = words[-1].startswith("running")
        last = {"weight": "kernel" if array.ndim > 1 else "scale"}.get(words[-1], words[-1])
        branch = tree.setdefault("batch_stats" if statistic else "params", {})
        for word in words[:-1]:
            branch = branch.setdefault(word, {})
        value = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        branch[last.removeprefix("running_")] = value
    (tmp_path / "flax_model.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    loaded = flaxres.load_weights(tmp_path / "flax_model.msgpack", MODEL)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_other_msgpack_files_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.msgpack"
    for content, message in (
        ({"params": {"dense": {"lora_a": np.zeros(3)}}}, "a leaf 'dense.lora_a': the rule"),
        ({"params": {}}, "hold no arrays"),
    ):
        path.write_bytes(flax.serialization.to_bytes(content))
        with pytest.raises(InputError, match=message):
            files.read(path)


def test_layers_of_clip_are_found_in_a_file_of_both_towers() -> None:
    model = flaxres.CLIPResNet(depths=(1, 1), widths=(16, 64), stem_width=4, image_size=32)
    names = {
        "stem.conv1.conv.weight": "visual.conv1.weight",
        "stem.conv3.bn.bias": "visual.bn3.bias",
        "stages.1.0.conv2_kxk.conv.weight": "visual.layer2.0.conv2.weight",
        "stages.1.0.conv3_1x1.bn.weight": "visual.layer2.0.bn3.weight",
        "stages.0.0.shortcut.conv.bn.bias": "visual.layer1.0.downsample.1.bias",
        "head.pos_embed": "visual.attnpool.positional_embedding",
        "head.q.weight": "visual.attnpool.q_proj.weight",
        "head.proj.bias": "visual.attnpool.c_proj.bias",
    }
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    state = torch_from_variables(jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes))
    assert names.keys() <= state.keys()
    theirs = dict.fromkeys(names.values(), 0) | {"token_embedding.weight": 0}
    assert set(renamed(theirs)) == names.keys()
