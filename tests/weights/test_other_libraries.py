"""Weights of transformers and CLIP, and of Flax's own files.

`python -m benchmarks.libraries` compares with the libraries themselves.
"""

import json
import pathlib
from typing import Any

import flax.serialization
import jax
import numpy as np
import pytest

import flaxres
from flaxres.data.preprocess import Preprocess
from flaxres.errors import InputError
from flaxres.weights import files
from flaxres.weights.renamed import renamed
from flaxres.weights.transfer import torch_from_variables

RNG = np.random.default_rng(0)
MODEL = flaxres.ResNet(depths=(1, 1), widths=(4, 8), stem_width=4, num_classes=3, v1=True)
SMALL: dict[str, Any] = {"depths": (2, 1), "widths": (4, 8), "num_classes": 3}
IMAGES = RNG.normal(size=(2, 32, 32, 3)).astype(np.float32)


def random(model: Any) -> Any:
    """Returns random variables of a network."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    return jax.tree.map(lambda leaf: RNG.uniform(0.1, 0.3, leaf.shape).astype(leaf.dtype), shapes)


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
    return random(MODEL)


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
    assert flaxres.load_pretrained(str(tmp_path), num_classes=5)[2].classes == ()
    (tmp_path / "preprocessor_config.json").unlink()
    assert flaxres.load_pretrained(str(tmp_path))[2].mean == Preprocess().mean
    for file, content, message in (
        ("config.json", config | {"model_type": "vit"}, "holds a vit of transformers"),
        ("config.json", config | {"hidden_act": "silu"}, "a resnet with {'hidden_act': 'silu'}"),
        ("preprocessor_config.json", processor | {"do_resize": False}, "has do_resize=False"),
        (
            "preprocessor_config.json",
            processor | {"image_processor_type": "ViTImageProcessor"},
            "is of a ViTImageProcessor",
        ),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / file).write_text(json.dumps(content))
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
        ({"params": {"dense": {"lora_a": np.zeros(3)}}}, "a leaf 'dense.lora_a', a ndarray"),
        ({"params": {"a": [np.zeros(3)]}}, "a leaf 'a', a list: the rule"),
        ({"params": {"a": {1: {"bias": "text"}}}}, "a leaf 'a.1.bias', a str: the rule"),
        ([np.zeros(3)], "hold no arrays"),
        ({"params": {}}, "hold no arrays"),
    ):
        path.write_bytes(flax.serialization.msgpack_serialize(content))
        with pytest.raises(InputError, match=message):
            files.read(path)


@pytest.mark.parametrize("name", ["ecaresnet26t", "test_nfnet", "test_convnext"])
def test_our_own_variables_in_msgpack_are_read(name: str, tmp_path: pathlib.Path) -> None:
    model = flaxres.create_model(name, num_classes=3, scan_blocks=True)
    expected = random(model)
    (tmp_path / "a.msgpack").write_bytes(flax.serialization.to_bytes(expected))
    loaded = flaxres.load_weights(tmp_path / "a.msgpack", model)
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_positions_are_interpolated_for_another_size(tmp_path: pathlib.Path) -> None:
    small = flaxres.CLIPResNet(**SMALL | {"widths": (16, 64)}, stem_width=4, image_size=32)
    large = small.clone(image_size=64)
    expected = random(small)
    flaxres.save_weights(tmp_path / "a.safetensors", expected, small)
    with pytest.raises(InputError, match="1 misshapen: head.pos_embed"):
        flaxres.load_weights(tmp_path / "a.safetensors", large)
    loaded = flaxres.load_weights(tmp_path / "a.safetensors", large, adapt=True)
    images = RNG.normal(size=(2, 64, 64, 3)).astype(np.float32)
    np.testing.assert_allclose(
        large.apply(loaded, images), small.apply(expected, images), rtol=1e-5
    )


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
