"""How fast a network answers: latency and throughput by batch, beside those of torchvision and onnxruntime where they are installed."""

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
import numpy as np

from flaxres.errors import InputError
from flaxres.inference.export import folded
from flaxres.models.registry import create_model, small_images
from flaxres.training.xla import compiler_options

Answer = Callable[[np.ndarray], Any]
SECONDS, WARM = 1.0, 2


def ours(name: str, size: int) -> Answer:
    """The network, batch norms folded, its variables constants of the program."""
    model = create_model(name)
    variables = model.init(
        jax.random.key(0), np.zeros((1, size, size, model.in_channels), np.float32)
    )
    fast, _ = folded(model, variables)
    program = jax.jit(lambda images: model.apply(fast, images), compiler_options=compiler_options())
    return lambda images: jax.block_until_ready(program(images))


def torchvisions(name: str, size: int) -> Answer | None:
    """The same of torchvision, evaluation mode, channels last; None where PyTorch or the network is not there."""
    model = torch_model(name)
    if model is None:
        return None
    torch: Any = importlib.import_module("torch")
    model = model.to(memory_format=torch.channels_last)

    def answer(images: np.ndarray) -> Any:
        with torch.inference_mode():
            return model(
                torch.from_numpy(images).permute(0, 3, 1, 2)
            )  # NHWC memory is what channels_last means

    return answer


def onnxruntimes(name: str, size: int) -> Answer | None:
    """torchvision's network in onnxruntime; None where a package is not there."""
    model = torch_model(name)
    if model is None or not all(map(importlib.util.find_spec, ("onnx", "onnxruntime"))):
        return None
    torch: Any = importlib.import_module("torch")
    onnxruntime: Any = importlib.import_module("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.onnx"
        given = torch.zeros(1, 3, size, size)
        torch.onnx.export(
            model,
            (given,),
            str(path),
            input_names=["images"],
            dynamic_axes={"images": {0: "batch"}},
            dynamo=False,
        )
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(
        None, {"images": np.ascontiguousarray(images.transpose(0, 3, 1, 2))}
    )


@functools.cache
def torch_model(name: str) -> Any:
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("torchvision") is None:
        return None
    prepare_torchvision()
    models: Any = importlib.import_module("torchvision.models")
    return getattr(models, name)().eval() if hasattr(models, name) else None


def prepare_torchvision() -> None:
    """torchvision's wheel registers fakes of operators that only its CUDA build defines: defined here, it can be imported on CPU."""
    global library
    torch: Any = importlib.import_module("torch")
    if torch.cuda.is_available() or library is not None:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


library: Any = None
PEERS: dict[str, Callable[[str, int], Answer | None]] = {
    "torch": torchvisions,
    "onnxruntime": onnxruntimes,
}


def seconds(answer: Answer, images: np.ndarray) -> float:
    """Median of the answers within about a second, after some that are not counted."""
    for _ in range(WARM):
        answer(images)
    times: list[float] = []
    while sum(times) < SECONDS or len(times) < 3:
        begun = time.perf_counter()
        answer(images)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def measure(
    name: str,
    batches: Sequence[int],
    size: int | None = None,
    pairs: int = 3,
    peers: Sequence[str] = tuple(PEERS),
) -> dict[str, float]:
    """Of each batch size B: `NAME_batchB_milliseconds` and `NAME_batchB_images_per_second`, ours and (`_PEER` after B) of each peer there is; and
    `NAME_batchB_vs_PEER`, the median of alternating pairs, above 1 where ours is faster.

    float32, random weights, images (B, S, S, 3) in the machine's memory. Peers are measured on CPUs alone. Raises InputError for an unknown name or a
    size below 32.
    """
    if not batches or min(batches) < 1:
        raise InputError(f"--batches={list(batches)}: the rule is > 0")
    if size is not None and size < 32:
        raise InputError(f"--size={size}: the rule is >= 32")
    create_model(name)
    if jax.default_backend() != "cpu":
        peers = ()  # which run on the CPU here
    size = size or (32 if small_images(name) else 224)
    network, others = (
        ours(name, size),
        {peer: answer for peer in peers if (answer := PEERS[peer](name, size)) is not None},
    )
    rng, figures = np.random.default_rng(0), {}
    for batch in batches:
        images = rng.standard_normal((batch, size, size, 3), np.float32)
        own: list[float] = []
        for peer, answer in others.items():
            found = [(seconds(network, images), seconds(answer, images)) for _ in range(pairs)]
            own += [mine for mine, _ in found]
            theirs = statistics.median(other for _, other in found)
            figures[f"{name}_batch{batch}_vs_{peer}"] = statistics.median(
                other / mine for mine, other in found
            )
            figures[f"{name}_batch{batch}_{peer}_milliseconds"] = 1e3 * theirs
            figures[f"{name}_batch{batch}_{peer}_images_per_second"] = batch / theirs
        mine = statistics.median(own or [seconds(network, images) for _ in range(pairs)])
        figures[f"{name}_batch{batch}_milliseconds"] = 1e3 * mine
        figures[f"{name}_batch{batch}_images_per_second"] = batch / mine
    return figures
