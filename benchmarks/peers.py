"""Networks of PyTorch and timm that benchmarks and tests compare with."""

import importlib
from typing import Any


def torch_and_timm() -> tuple[Any, Any]:
    """Imports torch and timm and returns the modules.

    Raises:
      ModuleNotFoundError: the extra `parity` is not installed.
    """
    torch = importlib.import_module("torch")
    if not torch.version.cuda:
        # Only here, since it imports simplejpeg, which a GPU machine may lack.
        from flaxres.diagnostics.latency import prepare_torchvision

        prepare_torchvision()
    return torch, importlib.import_module("timm")


def torch_and_torchmetrics() -> tuple[Any, Any]:
    """Imports torch and torchmetrics.classification and returns the modules.

    Raises:
      ModuleNotFoundError: the extra `parity` is not installed.
    """
    torch, _ = torch_and_timm()  # torchmetrics imports torchvision
    return torch, importlib.import_module("torchmetrics.classification")


def torch_resnet20(torch: Any, classes: int, residual: bool = True) -> Any:
    """Returns the CIFAR network of He et al. 2016, section 4.2, with option A shortcuts or none."""
    nn: Any = torch.nn  # mypy knows no torch, hence the two ignored lines

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self, before: int, width: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.stride, self.extra = stride, width - before

        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            if not residual:
                return torch.relu(y)
            strided = x[:, :, :: self.stride, :: self.stride]
            half = self.extra // 2
            shortcut = nn.functional.pad(strided, (0, 0, 0, 0, half, half))
            return torch.relu(y + shortcut)

    class Network(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
            self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
            self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
            self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
            self.linear = nn.Linear(64, classes)

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.bn1(self.conv1(x)))
            return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))

    return Network()


def torch_resnet9(
    torch: Any, classes: int, depths: Any, widths: Any, stem: int, residual: bool = True
) -> Any:
    """Returns the network of `flaxres.ResNet9`, with layers of the same names."""
    nn: Any = torch.nn

    class Pooled(nn.Module):  # type: ignore[misc]
        def __init__(self, before: int, width: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(before, width, 3, 1, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)

        def forward(self, x: Any) -> Any:
            return torch.relu(self.bn1(nn.functional.max_pool2d(self.conv1(x), 2)))

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)

        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            return torch.relu(x + y if residual else y)

    class Network(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem)
            inputs = (stem, *widths)
            for i, (before, width, depth) in enumerate(zip(inputs, widths, depths, strict=False)):
                blocks = (Block(width) for _ in range(depth - 1))
                setattr(self, f"layer{i + 1}", nn.Sequential(Pooled(before, width), *blocks))
            self.fc = nn.Linear(widths[-1], classes)

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.bn1(self.conv1(x)))
            for i in range(len(widths)):
                x = getattr(self, f"layer{i + 1}")(x)
            return self.fc(x.mean((2, 3)))

    return Network()
