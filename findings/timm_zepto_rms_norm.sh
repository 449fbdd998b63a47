#!/usr/bin/env bash
# The norms of timm's convnext_zepto_rms are no RMS norms.
#
# Packages: timm 1.0.31, torch 2.13.0, torchvision 0.28.0, Python 3.11 or newer.
# Guess:    the norms of convnext_zepto_rms are what the name says: x / sqrt(mean(x^2) + eps) times a
#           weight, over the channels, as torch.nn.functional.rms_norm.
# Seen:     they are x / sqrt(var(x) + eps) times the weight. The variance is taken around the mean and
#           divided by the channels less one, but the mean is not subtracted from x. So a constant added
#           to all channels grows in the result, where an RMS norm bounds it. convnext_atto_rms, which
#           has no weights, has RMS norms.
# Matters:  the weights that timm hosts for convnext_zepto_rms and convnext_zepto_rms_ols load into an
#           RMS norm of the same shapes without an error and give other logits.
#
# Output seen:
#   convnext_zepto_rms: SimpleNorm2d; as an RMS norm: False; as x / sqrt(unbiased variance): True
#   channels around 3: largest value 16.9, as an RMS norm 1.3
#   convnext_atto_rms: RmsNorm2d; as an RMS norm: True
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


def norm_of(name: str) -> torch.nn.Module:
    return timm.create_model(name).stages[0].blocks[0].norm


norm = norm_of("convnext_zepto_rms")
x = 3 + 0.3 * torch.randn(2, 32, 5, 5)
with torch.no_grad():
    y = norm(x)
rms = x / torch.sqrt(x.square().mean(1, keepdim=True) + norm.eps)
simple = x / torch.sqrt(x.var(1, keepdim=True) + norm.eps)
alike = [torch.allclose(y, other, rtol=1e-4) for other in (rms, simple)]
print(
    f"convnext_zepto_rms: {type(norm).__name__}; as an RMS norm: {alike[0]}; "
    f"as x / sqrt(unbiased variance): {alike[1]}"
)
print(f"channels around 3: largest value {y.max():.1f}, as an RMS norm {rms.max():.1f}")
assert alike == [False, True], "the behaviour changed"

norm = norm_of("convnext_atto_rms")
x = 3 + 0.3 * torch.randn(2, 40, 5, 5)
with torch.no_grad():
    y = norm(x)
same = torch.allclose(y, x / torch.sqrt(x.square().mean(1, keepdim=True) + norm.eps), rtol=1e-4)
print(f"convnext_atto_rms: {type(norm).__name__}; as an RMS norm: {same}")
assert same, "the behaviour changed"
PYTHON
