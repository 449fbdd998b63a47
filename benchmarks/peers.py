"""PyTorch and timm, to measure and test against."""

import importlib
from typing import Any


def torch_and_timm() -> tuple[Any, Any]:
    """The modules torch and timm; raises ModuleNotFoundError where the extra `parity` is not installed."""
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        # torchvision's wheel registers fakes of operators that only its CUDA build defines: defined here, it can be imported on CPU.
        global library
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return torch, importlib.import_module("timm")


library: Any = None
