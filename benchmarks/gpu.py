"""Correctness and speed on this machine's accelerator: `benchmarks/gpu.sh [--json] [--out DIR]`, or `python -m benchmarks.gpu --smoke` on a CPU.

First correctness: logits and gradients of ResNet-50 in float32 against this machine's CPU, and whether the same step gives the same bits twice. Then
training images/s in bfloat16 of a network and a plain SGD step, ours and the textbook's in turn (the median of three), and of torchvision's under
`torch.compile` (channels_last, autocast); with memory, seconds of compiling, bytes moved, and the share of the rate at which this device
copies; and where the device's time goes, by kind of kernel. Whatever fails is named and the rest goes on; so does what the time does not suffice for.
"""

import argparse
import collections
import functools
import gc
import glob
import importlib
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flaxres
from benchmarks.peers import torch_and_timm
from benchmarks.textbook import TEXTBOOK, plain_step
from flaxres.diagnostics.compiled import traffic

# Name, pixels, batches, in the order of what matters most.
PROGRAMS = [
    ("resnet50", 224, (256, 128, 512, 64, 1024)),
    ("resnet18", 224, (512,)),
    ("resnet20", 32, (1024,)),
    ("resnet152", 224, (128,)),
    ("densenet121", 224, (256,)),
]
SMOKE = [("resnet18", 64, (4,)), ("resnet20", 32, (8,))]
KINDS = {
    "convolution": ("conv", "cudnn", "wgrad", "dgrad", "fprop", "implicit"),
    "product": ("gemm", "cublas", "cutlass", "dot", "nvjet"),
    "copy": ("copy", "transpose", "memcpy", "nchwtonhwc", "nhwctonchw"),
    "reduction (batch norm)": ("reduce",),
    "elementwise": ("fusion", "loop", "elementwise"),
}


class Clock:
    """What is left of the time that the whole program may take."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()


def batch_of(size: int, count: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    return jax.random.normal(jax.random.key(0), (count, size, size, 3), dtype), jnp.arange(
        count, dtype=jnp.int32
    ) % 10


class Steps:
    """A compiled training step of a Linen module, with its state."""

    def __init__(self, model: Any, size: int, count: int) -> None:
        self.images, self.labels = batch_of(size, count, jnp.bfloat16)
        tx = optax.sgd(0.01, 0.9, nesterov=True)
        variables = jax.jit(lambda key, images: model.init(key, images, train=False))(
            jax.random.key(0), self.images[:1]
        )
        self.carry: tuple[Any, ...] = (variables, tx.init(variables["params"]))
        start = time.perf_counter()
        self.compiled = (
            jax.jit(plain_step(model, tx), donate_argnums=(0, 1))
            .lower(*self.carry, self.images, self.labels)
            .compile()
        )
        self.compile_seconds = time.perf_counter() - start

    def run(self, count: int) -> float:
        """Seconds a step."""
        start = time.perf_counter()
        for _ in range(count):
            *self.carry, loss = self.compiled(*self.carry, self.images, self.labels)
        if not np.isfinite(float(loss)):
            raise FloatingPointError("the loss is not finite")
        return (time.perf_counter() - start) / count

    def facts(self) -> dict[str, float]:
        compiled: Any = self.compiled
        memory, per_image = compiled.memory_analysis(), 1e6 * len(self.images)
        moved, _ = traffic(compiled.as_text())
        return {
            "temporary_gigabytes": memory.temp_size_in_bytes / 1e9,
            "compile_seconds": self.compile_seconds,
            "megabytes_per_image": sum(moved.values()) / per_image,
        }


def correctness(size: int) -> dict[str, float]:
    """Of ResNet-50 in float32: relative differences from the CPU, and whether a step is repeated bit for bit."""
    model = flaxres.create_model("resnet50", num_classes=10)
    cpu = jax.devices("cpu")[0]
    with jax.default_matmul_precision("highest"):
        with jax.default_device(cpu):
            images, labels = batch_of(size, 4, jnp.float32)
            variables = jax.jit(model.init)(jax.random.key(1), images)

        @jax.jit
        def both(variables: Any, images: jax.Array, labels: jax.Array) -> Any:
            def loss(params: Any) -> Any:
                logits, _ = model.apply(
                    variables | {"params": params}, images, train=True, mutable=["batch_stats"]
                )
                return optax.softmax_cross_entropy_with_integer_labels(
                    logits, labels
                ).mean(), logits

            gradients, logits = jax.grad(loss, has_aux=True)(variables["params"])
            return logits, gradients

        expected = jax.device_get(both(*jax.device_put((variables, images, labels), cpu)))
        arguments = jax.device_put((variables, images, labels), jax.devices()[0])
        first, second = (jax.device_get(both(*arguments)) for _ in range(2))

    def far(a: Any, b: Any) -> float:
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return max(
            float(np.linalg.norm(x - y)) / max(float(np.linalg.norm(y)), 1e-12) for x, y in pairs
        )

    differ = sum(
        x.tobytes() != y.tobytes()
        for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    )
    return {
        "logits_vs_cpu": far(first[0], expected[0]),
        "gradients_vs_cpu": far(first[1], expected[1]),
        "arrays_not_repeated": differ,
    }


def copy_rate(megabytes: int) -> float:
    """Bytes a second that a copy on the device reads and writes."""
    array = jnp.zeros(megabytes << 18, jnp.float32)
    twice = jax.jit(lambda x: x + 1)
    jax.block_until_ready(twice(array))
    start = time.perf_counter()
    for _ in range(20):
        result = twice(array)
    jax.block_until_ready(result)
    return 20 * 2 * array.nbytes / (time.perf_counter() - start)


def compare(name: str, size: int, count: int, steps: int, copies: float) -> dict[str, float]:
    """Images/s of ours and of the textbook, in turn."""
    ours = Steps(flaxres.create_model(name, dtype=jnp.bfloat16), size, count)
    ours.run(3)
    found = {f"{key}": value for key, value in ours.facts().items()}
    rates: dict[str, list[float]] = {"": []}
    textbook = Steps(TEXTBOOK[name](dtype=jnp.bfloat16), size, count) if name in TEXTBOOK else None
    if textbook:
        textbook.run(3)
        found |= {f"textbook_{key}": value for key, value in textbook.facts().items()}
        rates["textbook_"] = []
    for _ in range(3):
        rates[""].append(count / ours.run(steps))
        if textbook:
            rates["textbook_"].append(count / textbook.run(steps))
    found |= {f"{key}images_per_second": statistics.median(values) for key, values in rates.items()}
    if textbook:
        found["vs_textbook"] = statistics.median(
            a / b for a, b in zip(rates[""], rates["textbook_"], strict=True)
        )
    found["share_of_copy_rate"] = (
        found["images_per_second"] * found["megabytes_per_image"] * 1e6 / copies
    )
    return found


def torch_rate(name: str, size: int, count: int, steps: int) -> dict[str, float]:
    """Images/s of PyTorch's network in bfloat16, channels_last, compiled."""
    torch, timm = torch_and_timm()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    zoo = importlib.import_module("torchvision.models")
    model = getattr(zoo, name)() if hasattr(zoo, name) else timm.create_model(name)
    model = model.train().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, nesterov=True)
    images = torch.randn(count, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(count, device=device) % 10

    @torch.compile
    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    start = time.perf_counter()
    for _ in range(3):
        step().item()
    compiling, begun = time.perf_counter() - start, time.perf_counter()
    for _ in range(3 * steps):
        loss = step()
    loss.item()
    return {
        "torch_images_per_second": 3 * steps * count / (time.perf_counter() - begun),
        "torch_compile_seconds": compiling,
    }


def profile(steps: Steps) -> dict[str, float]:
    """Share of the device's time by kind of kernel, percent."""
    spent: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            steps.run(3)
        (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)  # noqa: PTH207
        for plane in jax.profiler.ProfileData.from_file(path).planes:
            if "GPU" not in plane.name and jax.default_backend() != "cpu":
                continue
            for line in plane.lines:
                for event in line.events:
                    facts = dict(event.stats)
                    if "hlo_op" in facts:
                        name = f"{facts['hlo_op']} {event.name}".lower()
                        kind = next(
                            (
                                kind
                                for kind, words in KINDS.items()
                                if any(word in name for word in words)
                            ),
                            "other",
                        )
                        spent[kind] += event.duration_ns
    total = sum(spent.values()) or 1
    return {kind: 100 * duration / total for kind, duration in spent.most_common()}


def programs(
    rows: list[Any], steps: int, copies: float
) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    """What is measured, by name, the most telling first."""
    for name, size, counts in rows:
        yield (
            f"{name}_{counts[0]}",
            functools.partial(compare, name, size, counts[0], steps, copies),
        )
        if name != "resnet20":
            yield f"{name}_{counts[0]}", functools.partial(torch_rate, name, size, counts[0], steps)
    name, size, counts = rows[0]
    yield (
        f"{name}_profile_percent",
        lambda: profile(Steps(flaxres.create_model(name, dtype=jnp.bfloat16), size, counts[0])),
    )
    for count in counts[1:]:
        yield f"{name}_{count}", functools.partial(compare, name, size, count, steps, copies)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--out",
        default=os.environ.get("OUT"),
        help="folder for gpu.json, written after each measurement",
    )
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes, to see that the program works"
    )
    chosen = parser.parse_args()
    clock, figures = Clock(60 * chosen.minutes), dict[str, Any]()
    rows, steps, size = (SMOKE, 2, 64) if chosen.smoke else (PROGRAMS, 20, 224)
    figures["device"] = jax.devices()[0].device_kind
    figures["versions"] = {
        name: importlib.import_module(name).__version__
        for name in ("jax", "flax", "optax", "torch", "torchvision", "timm")
    }
    figures["copy_gigabytes_per_second"] = copy_rate(64 if chosen.smoke else 2048) / 1e9
    work = [
        ("correctness", lambda: correctness(size)),
        *programs(rows, steps, 1e9 * figures["copy_gigabytes_per_second"]),
    ]
    for name, measure in work:
        if clock.left() < 20:
            print(f"no time is left for {name}", file=sys.stderr)
            continue
        try:
            figures.setdefault(name, {}).update(measure())
        except Exception as error:  # the other measurements are worth having
            figures.setdefault(name, {})["error"] = f"{type(error).__name__}: {str(error)[:300]}"
        gc.collect()
        if chosen.out:
            pathlib.Path(chosen.out, "gpu.json").write_text(json.dumps(figures, indent=1))
        if not chosen.json:
            told = ", ".join(
                f"{key} {value:,.3g}" if isinstance(value, float | int) else f"{key} {value}"
                for key, value in figures[name].items()
            )
            print(f"{name}: {told}", flush=True)
    for name in [
        name
        for name in figures
        if isinstance(figures[name], dict) and "torch_images_per_second" in figures[name]
    ]:
        found = figures[name]
        if "images_per_second" in found:
            found["vs_torch"] = found["images_per_second"] / found["torch_images_per_second"]
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
