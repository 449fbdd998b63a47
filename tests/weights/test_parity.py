"""Parity with PyTorch and timm: logits, features, round trips, and training step by step."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: the extra `parity`")

from benchmarks.peers import torch_and_timm

try:
    torch_and_timm()
except ModuleNotFoundError:
    pytest.skip("timm is not installed: the extra `parity`", allow_module_level=True)

import jax

import flaxres
from benchmarks.parity import IMAGES, compare, difference
from flaxres.weights.transfer import variables_from_torch

# One of each kind of block, stem and norm; `python -m benchmarks.parity` compares all names.
PLAIN = ["resnet10t", "resnet18d", "resnet50", "resnet50s"]
CHANGED = ["resnet50_gn", "resnext50_32x4d", "resnetblur50", "resnetaa50d"]
ATTENTIVE = ["seresnet18", "ecaresnet50d", "resnetrs50"]
PREACTIVATED = ["resnetv2_18d", "resnetv2_50", "resnetv2_50x1_bit", "resnetv2_50d_evos"]
IRREGULAR = ["test_resnet"]
DENSE = ["densenet121", "densenetblur121d"]
MULTI_SCALE = ["res2next50"]
SPLIT = ["resnest14d", "resnest50d_4s2x40d"]
SELECTIVE = ["skresnext50_32x4d"]
REGULAR = ["regnety_002"]
MODERN = ["convnext_femto_ols", "convnextv2_atto", "convnext_zepto_rms_ols", "test_convnext3"]
PREACTIVATED_REGULAR = ["regnetv_040", "regnetv_064", "regnetz_005"]
NORM_FREE = ["dm_nfnet_f0", "eca_nfnet_l0", "nf_regnet_b0", "nf_seresnet26", "test_nfnet"]
LEGACY = ["legacy_seresnet18", "legacy_seresnet50", "legacy_senet154"]
TOWERS = ["resnet50_clip", "resnet50_clip_gap"]
ZOO = [
    *(*PLAIN, *CHANGED, *ATTENTIVE, *PREACTIVATED, *IRREGULAR, *DENSE),
    *(*MULTI_SCALE, *SPLIT, *SELECTIVE, *REGULAR, *MODERN),
    *(*PREACTIVATED_REGULAR, *NORM_FREE, *LEGACY, *TOWERS),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_logits_features_and_round_trip_agree_with_timm(name: str) -> None:
    logits, features, exact = compare(name)
    assert logits <= 1e-4
    assert features <= 1e-4
    assert exact


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stride"),
    [
        *(("resnet50", 8), ("resnet18d", 16), ("resnetblur50", 16), ("resnetaa50d", 8)),
        *(("resnest14d", 8), ("regnety_002", 16), ("convnext_atto", 8)),
        *(("regnetv_064", 8), ("dm_nfnet_f0", 8)),
    ],
)
def test_dilated_networks_agree_with_timm(name: str, stride: int) -> None:
    assert max(compare(name, output_stride=stride)[:2]) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "resnet18", "resnet26d", "seresnet18", "densenet121"])
def test_training_agrees_with_pytorch_in_float64(name: str) -> None:
    words = [sys.executable, "-m", "tools.training_parity", name, "--json"]
    environment = os.environ | {"JAX_ENABLE_X64": "1"}
    done = subprocess.run(
        words,
        env=environment,
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    figures = json.loads(done.stdout.splitlines()[-1])[name]
    assert figures["losses"] <= 1e-7
    assert figures["state"] <= 1e-6


@pytest.mark.parametrize(
    ("theirs", "ours"), [("regnet_y_400mf", "regnety_004"), ("convnext_tiny", "convnext_tiny")]
)
def test_torchvisions_weights_are_understood(theirs: str, ours: str) -> None:
    torch, _ = torch_and_timm()
    models = importlib.import_module("torchvision.models")
    torch.manual_seed(0)
    network = models.get_model(theirs, num_classes=3).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("layer_scale"):  # a millionth would hide the branch
                parameter.uniform_(0.1, 0.4)
        expected = network(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())).numpy()
    model = flaxres.create_model(ours, num_classes=3)
    state = {name: value.numpy() for name, value in network.state_dict().items()}
    logits = jax.jit(model.apply)(variables_from_torch(state, model), IMAGES)
    assert difference(logits, expected) <= 1e-5
