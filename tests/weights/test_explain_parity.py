"""Grad-CAM of timm's networks agrees with its equations in PyTorch."""

import matplotlib.cbook
import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: the extra `parity`")
pytest.importorskip("timm", reason="timm is not installed: the extra `parity`")

from benchmarks.explain import NAMES, last_stage, networks, torch_grad_cam
from flaxres.data.preprocess import Preprocess
from flaxres.inference.explain import grad_cam

CLASS = 653  # military uniform


@pytest.mark.slow
@pytest.mark.extra
@pytest.mark.parametrize("name", NAMES)
def test_maps_of_a_photograph_agree_with_pytorch(name: str) -> None:
    photograph = str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    images = Preprocess(160, 176)(photograph)
    theirs, ours, variables = networks(name)
    cam = torch_grad_cam(theirs, last_stage(name, theirs), images, [CLASS])
    cam -= cam.min()
    given = grad_cam(ours, variables, images, CLASS, upsample=False)
    np.testing.assert_allclose(given, cam / cam.max(), atol=1e-4)
