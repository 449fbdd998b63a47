"""Files of weights as other programs write them."""

import argparse
import json
import os
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import flaxres
from flaxres.data.preprocess import Preprocess
from flaxres.errors import InputError
from flaxres.weights import files
from flaxres.weights.card import CLASSES, NETWORK, PREPROCESS
from flaxres.weights.names import leaves
from flaxres.weights.transfer import torch_from_variables, variables_from_torch

MODEL = flaxres.ResNet9(depths=(1,), widths=(4,), stem_width=4)


@pytest.fixture(scope="module")
def variables() -> Any:
    """Returns variables of MODEL as NumPy arrays."""
    images = jnp.zeros((1, 8, 8, 3))
    return jax.tree.map(np.asarray, jax.jit(MODEL.init)(jax.random.key(0), images))


def equal(a: Any, b: Any) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.mark.parametrize("order", ["every second", "transposed", "reversed", "broadcast"])
def test_views_are_saved_with_their_values(
    order: str, variables: Any, tmp_path: pathlib.Path
) -> None:
    views = {
        "every second": lambda array: np.stack([array, array + 1], -1)[..., 0],
        "transposed": lambda array: np.asfortranarray(array),
        "reversed": lambda array: array[::-1].copy()[::-1],
        "broadcast": lambda array: np.broadcast_to(array.ravel()[0], array.shape),
    }
    changed = jax.tree.map(views[order], variables)
    flaxres.save_weights(tmp_path / "w.safetensors", changed, MODEL)
    assert equal(flaxres.load_weights(tmp_path / "w.safetensors", MODEL), changed)


@pytest.mark.parametrize("dtype", [np.int8, np.int64, ml_dtypes.float8_e4m3fn])
def test_arrays_that_need_a_scale_are_refused(dtype: Any, variables: Any) -> None:
    state = torch_from_variables(variables)
    state["conv1.weight"] = state["conv1.weight"].astype(dtype)
    name = np.dtype(dtype).name
    with pytest.raises(InputError, match=rf"conv1.weight is {name}: the rule is float16, .*again"):
        variables_from_torch(state, MODEL)


def test_a_file_with_floats_of_8_bits_is_refused(variables: Any, tmp_path: pathlib.Path) -> None:
    state = torch_from_variables(variables)
    state["conv1.weight"] = state["conv1.weight"].astype(ml_dtypes.float8_e4m3fn)
    safetensors.numpy.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"conv1.weight is F8_E4M3, floats of 8 bits"):
        flaxres.load_weights(tmp_path / "w.safetensors", MODEL)


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.module.",
        "module._orig_mod.",
        "model._orig_mod.module.",
        "net.",
        "model.backbone.",
    ],
)
def test_prefixes_are_dropped_in_any_order(prefix: str, variables: Any) -> None:
    state: dict[str, Any] = {
        prefix + name: array for name, array in torch_from_variables(variables).items()
    }
    state["n_averaged"] = np.asarray(7)
    assert equal(variables_from_torch(state, MODEL), variables)


@pytest.mark.extra
def test_a_lightning_checkpoint_with_options(variables: Any, tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    state = {
        "model." + name: torch.from_numpy(np.array(array))
        for name, array in torch_from_variables(variables).items()
    }
    content = {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=0.1, name="a")}
    torch.save(content, tmp_path / "last.ckpt")
    assert equal(flaxres.load_weights(tmp_path / "last.ckpt", MODEL), variables)


@pytest.mark.extra
@pytest.mark.parametrize("kind", ["meta", "sparse"])
def test_tensors_without_dense_values_are_refused(
    kind: str, variables: Any, tmp_path: pathlib.Path
) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    state = {
        name: torch.from_numpy(np.array(array))
        for name, array in torch_from_variables(variables).items()
    }
    weight = state["fc.weight"]
    state["fc.weight"] = weight.to("meta") if kind == "meta" else weight.to_sparse()
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"fc.weight is a quantised, sparse or empty \(meta\)"):
        flaxres.load_weights(tmp_path / "w.pth", MODEL)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_a_file_has_the_mode_that_the_umask_allows(
    umask: int, mode: int, variables: Any, tmp_path: pathlib.Path
) -> None:
    before = os.umask(umask)
    try:
        flaxres.save_weights(tmp_path / "w.safetensors", variables, MODEL)
    finally:
        os.umask(before)
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == mode


def test_equal_weights_give_equal_files(variables: Any, tmp_path: pathlib.Path) -> None:
    classes = tuple("abcdefghij")
    for i in range(6):
        flaxres.save_weights(tmp_path / f"{i}.safetensors", variables, MODEL, Preprocess(), classes)
    files = [path.read_bytes() for path in tmp_path.iterdir()]
    assert len(set(files)) == 1
    with safetensors.safe_open(tmp_path / "0.safetensors", framework="numpy") as file:
        assert file.metadata().keys() == {"format", NETWORK, PREPROCESS, CLASSES}
    assert equal(flaxres.load_weights(tmp_path / "0.safetensors", MODEL), variables)


def test_weights_in_several_files_are_read_by_their_index(
    variables: Any, tmp_path: pathlib.Path
) -> None:
    state = torch_from_variables(variables)
    names = sorted(state)
    parts = {"a-1.safetensors": names[::2], "a-2.safetensors": names[1::2]}
    for file, part in parts.items():
        files.write(tmp_path / file, {name: state[name] for name in part}, {"format": "pt"})
    index = tmp_path / "model.safetensors.index.json"
    places = {name: file for file, part in parts.items() for name in part}
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    read, metadata = files.read(index)
    assert read.keys() == state.keys()
    jax.tree.map(np.testing.assert_array_equal, read, state)
    assert metadata == {"format": "pt"}
    for content, message in (
        ("[]", "the rule is a JSON object"),
        (json.dumps({"weight_map": {"a": "../a-1.safetensors"}}), "beside the index"),
        (json.dumps({"weight_map": {"a": "a-3.safetensors"}}), "a-3.safetensors' do not exist"),
        (json.dumps({"weight_map": {"b": "a-1.safetensors"}}), "no file has b, which"),
    ):
        index.write_text(content)
        with pytest.raises(InputError, match=message):
            files.read(index)


def test_the_authors_archives_of_bit_are_understood(tmp_path: pathlib.Path) -> None:
    model = flaxres.create_model(
        "resnetv2_50x1_bit", depths=(1, 2), widths=(128, 128), stem_width=32, num_classes=3
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f4"), dict(shapes))
    letters = {"1": "a", "2": "b", "3": "c"}
    archive = {}
    for path, value in leaves(variables["params"]):
        name = "/".join(path)
        if block := re.match(r"stages/(\d)/blocks/(\d)/(conv|norm|downsample)(\d?)", name):
            letter = letters.get(block[4], "a/proj")
            kind = "group_norm" if block[3] == "norm" else "standardized_conv2d"
            name = (
                f"block{int(block[1]) + 1}/unit{int(block[2]) + 1:02d}/{letter}/{kind}/{path[-1]}"
            )
        name = name.replace("stem/conv", "root_block/standardized_conv2d")
        name = name.replace("head/fc", "head/conv2d")
        name = re.sub("^norm/", "group_norm/", name)
        if "group_norm" in name:
            name = name.replace("scale", "gamma").replace("bias", "beta")
        archive[f"resnet/{name}"] = value
    assert "resnet/block2/unit01/a/proj/standardized_conv2d/kernel" in archive
    np.savez(tmp_path / "bit.npz", **archive)
    loaded = flaxres.load_weights(tmp_path / "bit.npz", model)
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], variables["params"])
    (tmp_path / "cut.npz").write_bytes((tmp_path / "bit.npz").read_bytes()[:-50])
    with pytest.raises(InputError, match="the rule is an .npz archive of arrays"):
        flaxres.load_weights(tmp_path / "cut.npz", model)
