"""Metadata of files of weights: their network, preprocessing and classes."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import linen as nn
from PIL import Image

import flaxres
from flaxres.cli import main
from flaxres.data.preprocess import Preprocess
from flaxres.errors import InputError
from flaxres.inference.predict import from_weights
from flaxres.models.network import Network
from flaxres.models.resnet import ResNet
from flaxres.models.resnet9 import ResNet9
from flaxres.models.resnetv2 import ResNetV2
from flaxres.weights.card import from_metadata, to_metadata
from tests.weights.test_transfer import random_variables

TINY: dict[str, Any] = {"depths": (1, 1), "widths": (8, 16), "stem_width": 8, "num_classes": 3}
OTHERS: dict[str, dict[str, tuple[Any, ...]]] = {
    "ResNet": {
        "block": ("basic",),
        "stem": ("small", "deep"),
        "stem_convolution": (True,),
        "shortcut": ("average", "zero_pad", "none"),
        "shortcut_size": (3,),
        "reduction": (2,),
        "pruned": ((5, 5, 30, 9, 9, 60),),
        "v1": (True,),
        "cardinality": (2,),
        "base_width": (32,),
        "attention": ("se", "eca"),
        "se_ratio": (),  # without attention it has no meaning
        "anti_alias": ("blur", "average"),
        "norm_kind": ("group",),
        "output_stride": (16, 8),
        "head_name": ("linear",),
    },
    "ResNetV2": {
        "block": ("basic",),
        "stem": ("small", "deep", "fixed"),
        "averaged": (True,),
        "norm_kind": ("group", "evo"),
        "standardise": (1e-6,),
    },
}


def leaves_of(model: Network) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a network's leaves by their paths."""
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    leaves = jax.tree_util.tree_leaves_with_path(
        jax.eval_shape(model.init, jax.random.key(0), images)
    )
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}


@pytest.mark.parametrize("network", [ResNet, ResNetV2])
def test_an_attribute_changes_the_leaves_or_is_on_the_list(network: type[Network]) -> None:
    """Tries another value of each attribute, so that no new one is forgotten."""
    others = OTHERS[network.__name__]
    sizes = {*TINY, "depths", "widths", *(f.name for f in dataclasses.fields(Network))}
    assert {field.name for field in dataclasses.fields(network)} - sizes == others.keys()
    wide = TINY | {"widths": (32, 64), "stem_width": 32}
    for block in ("bottleneck", "basic"):
        model: Any = network(**wide, block=block)
        leaves = leaves_of(model)
        for name, values in others.items():
            if block == "basic" and name in ("cardinality", "base_width"):
                continue  # of bottlenecks alone
            for value in values:
                try:
                    same = leaves_of(model.clone(**{name: value})) == leaves
                except InputError:
                    continue
                if same and value != getattr(model, name):
                    assert name in network.BEYOND_LEAVES, (block, name, value)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("v1", True),
        ("anti_alias", "blur"),
        ("shortcut", "none"),
        ("output_stride", 8),
    ],
)
def test_a_network_of_another_function_is_refused(
    attribute: str, value: Any, tmp_path: pathlib.Path
) -> None:
    model, path = flaxres.ResNet(**TINY), tmp_path / "w.safetensors"
    if attribute == "shortcut":  # neither of the two has parameters
        model = model.clone(shortcut="zero_pad")
    variables = random_variables(model)
    flaxres.save_weights(path, variables, model)
    other = model.clone(**{attribute: value})
    with pytest.raises(InputError, match=f"the model has {attribute}={value!r}: create it with"):
        flaxres.load_weights(path, other)
    if attribute == "output_stride":
        flaxres.load_weights(path, other, adapt=True)
    else:
        with pytest.raises(InputError, match=f"the model has {attribute}={value!r}"):
            flaxres.load_weights(path, other, adapt=True)


@pytest.mark.parametrize(
    "model",
    [
        flaxres.ResNet(**TINY, dtype=jnp.bfloat16, anti_alias="blur", in_channels=1),
        flaxres.ResNetV2(num_classes=5, stem="fixed", norm_kind="group", standardise=1e-8),
        ResNet9(num_classes=7),
        flaxres.create_model("densenet121", num_classes=2),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_network_comes_back_from_its_metadata(model: Network) -> None:
    preprocess = Preprocess(20, 24, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), exif=True)
    # What only training needs is not kept.
    trained = model.clone(dropout=0.5, bn_group=4, parent=None)
    card = from_metadata(to_metadata(trained, preprocess, ("ä", "b c")), "weights")
    assert card.network == model.clone(parent=None)
    assert Preprocess(**card.preprocess or {}) == preprocess
    assert card.classes == ("ä", "b c")


def test_files_of_older_versions_state_v1_alone(tmp_path: pathlib.Path) -> None:
    model, path = flaxres.ResNet(**TINY, v1=True, anti_alias="blur"), tmp_path / "w.safetensors"
    flaxres.save_weights(path, random_variables(model), model)
    arrays = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(arrays, path, {"format": "pt", "flaxres.v1": "True"})
    flaxres.load_weights(path, model)
    flaxres.load_weights(path, model.clone(anti_alias=None))
    with pytest.raises(InputError, match="of a network with v1=True, the model has v1=False"):
        flaxres.load_weights(path, model.clone(v1=False))


def test_networks_of_other_classes_are_saved(tmp_path: pathlib.Path) -> None:
    class Mine(flaxres.ResNet):
        loss: Any = len  # nothing that JSON could hold

    class Other(Network):
        @nn.compact
        def __call__(self, images: Any, train: bool = False) -> Any:
            return nn.Dense(2, name="fc")(images.mean((1, 2)))

    for model, states in ((Mine(**TINY), True), (Other(), False)):
        path = tmp_path / "w.safetensors"
        variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
        flaxres.save_weights(path, variables, model)
        with safetensors.safe_open(path, framework="numpy") as file:
            card = from_metadata(file.metadata(), "weights")
        assert (card.network is not None) == states
        loaded = flaxres.load_weights(path, model)
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), loaded, variables))


def test_metadata_that_were_changed_are_refused(tmp_path: pathlib.Path) -> None:
    model, path = flaxres.ResNet(**TINY), tmp_path / "w.safetensors"
    flaxres.save_weights(path, random_variables(model), model)
    arrays = safetensors.numpy.load_file(path)
    for text in ("{", "[]", '{"class": "ResNet3D"}', '{"class": "ResNet", "gates": 3}'):
        safetensors.numpy.save_file(arrays, path, {"flaxres.network": text})
        with pytest.raises(InputError, match=r"their metadata can't be read .*convert them again"):
            flaxres.load_weights(path, model)


def test_prediction_needs_the_file_alone(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, path = flaxres.ResNet(**TINY, stem="small"), tmp_path / "w.safetensors"
    preprocess = Preprocess(16, 20, "bicubic", (0.3, 0.3, 0.3), (0.2, 0.2, 0.2))
    classes = ("cat", "dog", "axolotl")
    variables = random_variables(model)
    flaxres.save_weights(path, variables, model, preprocess, classes)
    image, again = tmp_path / "image.png", str(tmp_path / "again.safetensors")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(image)
    predictor = from_weights(str(path))
    assert (predictor.model, predictor.preprocess, predictor.classes) == (
        model,
        preprocess,
        classes,
    )
    assert main(["convert", str(path), again]) == 0
    results = []
    for file in (str(path), again):
        capfd.readouterr()
        assert main(["predict", str(image), "--weights", file, "--json"]) == 0
        results.append(json.loads(capfd.readouterr().out)[str(image)])
    logits = model.apply(variables, preprocess(image))[0]
    expected = dict(zip(classes, np.asarray(jax.nn.softmax(logits)).tolist(), strict=True))
    for result in results:
        assert dict(result) == pytest.approx(expected, abs=1e-6)
    smaller = from_weights(str(path), size=8).preprocess
    assert smaller == dataclasses.replace(preprocess, size=8, resize=10)
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path)
    assert main(["predict", str(image), "--weights", str(path)]) == 2
    assert "don't name their network: give --model" in capfd.readouterr().err
