"""Measures inference by batch size, beside torchvision and onnxruntime where they are installed."""

import functools
import importlib
import importlib.util
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxres.errors import InputError
from flaxres.inference.fuse import network_function
from flaxres.inference.int8 import Int8Network
from flaxres.models.registry import create_model
from flaxres.models.summary import usual_size

Classifier = Callable[[np.ndarray], Any]
"""Maps images (B, S, S, 3) float32 in host memory to logits, and waits for them."""
SECONDS, WARM = 1.0, 2
DTYPES = ("float32", "bfloat16", "int8")


def measure(
    name: str,
    batches: Sequence[int],
    size: int | None = None,
    pairs: int = 3,
    peers: Sequence[str] | None = None,
    dtype: str = "float32",
) -> dict[str, float]:
    """Measures latency and throughput, with random weights.

    Args:
      name: of the model.
      batches: batch sizes.
      size: of the images, pixels; None takes the model's.
      pairs: number of alternating measurements.
      peers: names of `PEERS`, compared with where they are installed, only on CPUs; None takes
        all. They compute in float32.
      dtype: of `DTYPES`, of flaxres' network.

    Returns:
      For each batch size B `NAME_batchB_milliseconds` and `NAME_batchB_images_per_second`; the same
      with `_PEER` after B for each peer; and `NAME_batchB_vs_PEER`, the median ratio of the pairs,
      above 1 where flaxres is faster.

    Raises:
      InputError: the model is unknown, a batch size is below 1, the size is below 32, or this
        machine doesn't compute in 8 bits.
    """
    if not batches or min(batches) < 1:
        raise InputError(f"--batches={list(batches)}: the rule is > 0")
    if size is not None and size < 32:
        raise InputError(f"--size={size}: the rule is >= 32")
    model = create_model(name)
    if jax.default_backend() != "cpu":
        peers = ()  # these run on the CPU
    size = size or usual_size(model)
    ours = flaxres_classifier(name, size, dtype)
    names = PEERS if peers is None else peers
    candidates = {peer: PEERS[peer](name, size) for peer in names}
    theirs = {peer: classifier for peer, classifier in candidates.items() if classifier is not None}
    rng = np.random.default_rng(0)
    figures: dict[str, float] = {}
    for batch in batches:
        images = rng.standard_normal((batch, size, size, 3), np.float32)
        figures |= _compared(f"{name}_batch{batch}", images, ours, theirs, pairs)
    return figures


def _compared(
    name: str,
    images: np.ndarray,
    ours: Classifier,
    peers: dict[str, Classifier],
    pairs: int,
) -> dict[str, float]:
    """Measures one batch size, in turn with each peer."""
    figures: dict[str, float] = {}
    times: list[float] = []
    for peer, classifier in peers.items():
        both = [(seconds(ours, images), seconds(classifier, images)) for _ in range(pairs)]
        times += [mine for mine, _ in both]
        figures[f"{name}_vs_{peer}"] = statistics.median(other / mine for mine, other in both)
        theirs = statistics.median(other for _, other in both)
        figures |= _rates(f"{name}_{peer}", len(images), theirs)
    mine = statistics.median(times or [seconds(ours, images) for _ in range(pairs)])
    return figures | _rates(name, len(images), mine)


def _rates(name: str, batch: int, seconds: float) -> dict[str, float]:
    return {
        f"{name}_milliseconds": 1e3 * seconds,
        f"{name}_images_per_second": batch / seconds,
    }


def seconds(classifier: Classifier, images: np.ndarray) -> float:
    """Returns the median time of calls within about a second, after `WARM` that do not count."""
    for _ in range(WARM):
        classifier(images)
    times: list[float] = []
    while sum(times) < SECONDS or len(times) < 3:
        start = time.perf_counter()
        classifier(images)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def flaxres_classifier(name: str, size: int, dtype: str) -> Classifier:
    """Returns our network in the form in which `flaxres predict` and `flaxres serve` run it."""
    model = create_model(name, dtype=jnp.dtype("float32" if dtype == "int8" else dtype))
    shape = (8, size, size, model.in_channels)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    variables = model.init(jax.random.key(0), images[:1])
    network: Classifier = (
        Int8Network(model, variables, images)
        if dtype == "int8"
        else network_function(model, variables)
    )
    return lambda images: jax.block_until_ready(network(images))


def torchvision_classifier(name: str, size: int) -> Classifier | None:
    """Returns torchvision's network, channels last; None where it or PyTorch is not there."""
    model = _torch_model(name)
    if model is None:
        return None
    torch: Any = importlib.import_module("torch")
    model = model.to(memory_format=torch.channels_last)

    def classify(images: np.ndarray) -> Any:
        # NHWC memory under NCHW shapes is what channels_last means.
        with torch.inference_mode():
            return model(torch.from_numpy(images).permute(0, 3, 1, 2))

    return classify


def onnxruntime_classifier(name: str, size: int) -> Classifier | None:
    """Returns torchvision's network in onnxruntime; None where a package is not there."""
    model = _torch_model(name)
    if model is None or not all(map(importlib.util.find_spec, ("onnx", "onnxruntime"))):
        return None
    torch: Any = importlib.import_module("torch")
    onnxruntime: Any = importlib.import_module("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder) / "model.onnx")
        torch.onnx.export(
            model,
            (torch.zeros(1, 3, size, size),),
            path,
            input_names=["images"],
            dynamic_axes={"images": {0: "batch"}},
            dynamo=False,
        )
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def classify(images: np.ndarray) -> Any:
        return session.run(None, {"images": np.ascontiguousarray(images.transpose(0, 3, 1, 2))})

    return classify


PEERS: dict[str, Callable[[str, int], Classifier | None]] = {
    "torch": torchvision_classifier,
    "onnxruntime": onnxruntime_classifier,
}


@functools.cache
def _torch_model(name: str) -> Any:
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("torchvision") is None:
        return None
    prepare_torchvision()
    models: Any = importlib.import_module("torchvision.models")
    return getattr(models, name)().eval() if hasattr(models, name) else None


_library: Any = None


def prepare_torchvision() -> None:
    """Makes torchvision's CUDA wheel importable beside a PyTorch without CUDA.

    It registers fakes of operators that only its CUDA build defines; this defines them. Beside a
    PyTorch built for CUDA they exist, with a GPU or without.
    """
    global _library
    torch: Any = importlib.import_module("torch")
    if torch.version.cuda or _library is not None:
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
