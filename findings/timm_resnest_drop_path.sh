#!/usr/bin/env bash
# Stochastic depth in timm's ResNeSt drops the shortcut of some blocks, and nothing in the others.
#
# Packages: timm 1.0.31, torch 2.13.0, torchvision 0.28.0, Python 3.11 or newer.
# Guess:    create_model(name, drop_path_rate=r) drops the residual branch of a block, as in Huang et
#           al. 2016, for every network of timm that takes the argument; the blocks of resnest.py
#           are those of resnet.py with another 3x3.
# Seen:     in a ResNeSt block without a projection the argument has no effect: calls in training
#           mode are all alike. In a block with one (the first of a stage) the input of the
#           projection is dropped: what is left is the branch alone. resnet.py does as guessed.
# Matters:  a ResNeSt trained with drop_path_rate is trained without that regularisation, and 4 of its
#           blocks without their shortcut at random. No loss or error shows it. A reimplementation
#           that follows the paper differs from timm in training alone.
#
# Output seen:
#   resnet26d  identity block: 8 of 8 images dropped to their shortcut in some call
#   resnest26d identity block: 0 of 8, and 1 distinct output in 20 calls
#   resnest26d projection block: an image's output is that of the branch alone: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q timm==1.0.31 torch==2.13.0 torchvision==0.28.0
"$folder/venv/bin/python" - <<'PYTHON'
import subprocess
import sys

import torch

# A torchvision built for CUDA lacks its operators beside a torch for CPUs; none is needed here.
if subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True).returncode:
    missing = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        missing.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm

torch.manual_seed(0)
CALLS, RATE = 20, 0.5


def dropped_and_distinct(name: str) -> tuple[int, int]:
    """Images that some call leaves as the block's shortcut, and the distinct outputs of the calls."""
    block = timm.create_model(name, drop_path_rate=RATE).layer4[1]
    torch.nn.init.ones_(block.bn3.weight)
    block.train()
    x = torch.rand(8, 2048, 4, 4)
    with torch.no_grad():
        outputs = [block(x.clone()) for _ in range(CALLS)]
    images = {i for y in outputs for i in range(8) if torch.equal(y[i], x[i])}
    return len(images), len({y.numpy().tobytes() for y in outputs})


images, distinct = dropped_and_distinct("resnet26d")
print(f"resnet26d  identity block: {images} of 8 images dropped to their shortcut in some call")
assert images == 8 and distinct > 1, "the behaviour changed"
images, distinct = dropped_and_distinct("resnest26d")
print(f"resnest26d identity block: {images} of 8, and {distinct} distinct output in {CALLS} calls")
assert images == 0 and distinct == 1, "the behaviour changed"

block = timm.create_model("resnest26d", drop_path_rate=RATE).layer4[0]
torch.nn.init.ones_(block.bn3.weight)
block.eval()
x = torch.rand(8, 1024, 8, 8)
with torch.no_grad():
    whole, projection = block(x), block.downsample(x)
    alone = block.downsample(torch.zeros_like(x))
    block.drop_path.train()  # the norms keep their running statistics
    outputs = [block(x.clone()) for _ in range(CALLS)]
branch = {}
block.act3.register_forward_pre_hook(lambda module, given: branch.update(sum=given[0].clone()))
with torch.no_grad():
    block.drop_path.eval()
    block(x.clone())
expected = torch.relu(branch["sum"] - projection + alone)
only = any(
    torch.allclose(y[i], expected[i], atol=1e-5) and not torch.allclose(y[i], whole[i], atol=1e-5)
    for y in outputs
    for i in range(8)
)
print(f"resnest26d projection block: an image's output is that of the branch alone: {only}")
assert only, "the behaviour changed"
PYTHON
