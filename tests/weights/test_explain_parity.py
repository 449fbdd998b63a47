"""Grad-CAM of timm's networks agrees with its equations in PyTorch."""

import matplotlib.cbook
import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: the extra `parity`")

from benchmarks.peers import torch_and_timm

try:
    torch_and_timm()
except ModuleNotFoundError:
    pytest.skip("timm is not installed: the extra `parity`", allow_module_level=True)

from benchmarks.explain import NAMES, last_stage, networks, tensor, torch_grad_cam
from flaxres.data.preprocess import Preprocess
from flaxres.inference.explain import grad_cam


@pytest.mark.slow
@pytest.mark.extra
@pytest.mark.parametrize("name", NAMES)
def test_maps_of_a_photograph_agree_with_pytorch(name: str) -> None:
    photograph = str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    images = Preprocess(160, 176)(photograph)
    theirs, ours, variables = networks(name)
    likeliest = int(theirs(tensor(images)).argmax())
    cam = torch_grad_cam(theirs, last_stage(name, theirs), images, [likeliest])
    cam -= cam.min()
    assert cam.max() > 0
    given = grad_cam(ours, variables, images, likeliest, upsample=False)
    np.testing.assert_allclose(given, cam / cam.max(), atol=1e-4)
