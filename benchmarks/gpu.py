"""Correctness and speed on this machine's accelerator.

    benchmarks/gpu.sh [--json] [--out DIR] [--parts PART ...]
    python -m benchmarks.gpu --smoke                on a CPU

`benchmarks/GPU.md` has the calls in order. The parts are:

  main           training images/s of ResNet-50 in bfloat16 with a plain SGD step: ours and the
                 textbook's in turn (the median of three), and torchvision's under `torch.compile`
                 (channels_last, autocast), with memory, seconds of compiling, bytes moved and the
                 share of this device's copy rate; the device's time by type of kernel; logits and
                 gradients in float32 against this machine's CPU, and whether a repetition returns
                 the same bits
  deterministic  the step with `xla_gpu_deterministic_ops` and without, in turn; arrays of which a
                 repetition of three steps has other bits
  sweep          the rates of main at other batches
  networks       the rates of main for other networks

A measurement that fails, or for which no time is left, is named, and the others go on. With
`--out`, the traces and optimised programs of the profiled steps are written beside `gpu.json`.
"""

import argparse
import functools
import gc
import importlib
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flaxres
from benchmarks import command
from benchmarks.kernels import profile
from benchmarks.peers import torch_and_timm
from benchmarks.textbook import TEXTBOOK, plain_step
from flaxres.diagnostics.compiled import traffic

# Name, pixels and batches, the most important first.
PROGRAMS = [
    ("resnet50", 224, (256, 128, 512, 64, 1024)),
    ("resnet18", 224, (512,)),
    ("resnet20", 32, (1024,)),
    ("resnet152", 224, (128,)),
    ("densenet121", 224, (256,)),
]
SMOKE = [("resnet18", 64, (4, 2)), ("resnet20", 32, (8,))]
PARTS = ("main", "deterministic", "sweep", "networks")


Measurement = Callable[[], dict[str, float]]


class Clock:
    """The time that is left to the program."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        """Returns the seconds that are left."""
        return self.end - time.monotonic()


def batch_of(size: int, count: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Returns random images and labels of ten classes."""
    images = jax.random.normal(jax.random.key(0), (count, size, size, 3), dtype)
    return images, jnp.arange(count, dtype=jnp.int32) % 10


class Steps:
    """A compiled training step of a Linen module, with its state."""

    def __init__(
        self, model: Any, size: int, count: int, options: dict[str, Any] | None = None
    ) -> None:
        self.images, self.labels = batch_of(size, count, jnp.bfloat16)
        tx = optax.sgd(0.01, 0.9, nesterov=True)
        init = jax.jit(lambda key, images: model.init(key, images, train=False))
        variables = init(jax.random.key(0), self.images[:1])
        self.carry: tuple[Any, ...] = (variables, tx.init(variables["params"]))
        start = time.perf_counter()
        step = jax.jit(plain_step(model, tx), donate_argnums=(0, 1))
        lowered = step.lower(*self.carry, self.images, self.labels)
        self.compiled = lowered.compile(compiler_options=options)
        self.compile_seconds = time.perf_counter() - start

    def run(self, count: int) -> float:
        """Runs so many steps and returns the seconds of one."""
        start = time.perf_counter()
        for _ in range(count):
            *self.carry, loss = self.compiled(*self.carry, self.images, self.labels)
        if not np.isfinite(float(loss)):
            raise FloatingPointError("the loss is not finite")
        return (time.perf_counter() - start) / count

    def facts(self) -> dict[str, float]:
        """Returns memory, compile time and memory traffic."""
        compiled: Any = self.compiled
        memory, per_image = compiled.memory_analysis(), 1e6 * len(self.images)
        moved, _ = traffic(compiled.as_text())
        return {
            "temporary_gigabytes": memory.temp_size_in_bytes / 1e9,
            "compile_seconds": self.compile_seconds,
            "megabytes_per_image": sum(moved.values()) / per_image,
        }


@functools.lru_cache(maxsize=2)
def our_steps(name: str, size: int, count: int) -> Steps:
    """Returns our training step of a network in bfloat16; the last two are kept."""
    return Steps(flaxres.create_model(name, dtype=jnp.bfloat16), size, count)


@functools.lru_cache(maxsize=1)
def textbook_steps(name: str, size: int, count: int) -> Steps:
    """Returns the textbook's training step of a network in bfloat16."""
    return Steps(TEXTBOOK[name](dtype=jnp.bfloat16), size, count)


def correctness(size: int) -> dict[str, float]:
    """Compares ResNet-50 in float32 to the CPU, and a step to its repetition.

    Returns:
      Relative differences of logits and gradients from the CPU's, and the number of arrays of which
      a repetition has other bits.
    """
    model = flaxres.create_model("resnet50", num_classes=10)
    cpu = jax.devices("cpu")[0]
    with jax.default_matmul_precision("highest"):
        with jax.default_device(cpu):
            images, labels = batch_of(size, 4, jnp.float32)
            variables = jax.jit(model.init)(jax.random.key(1), images)

        @jax.jit
        def both(variables: Any, images: jax.Array, labels: jax.Array) -> Any:
            def loss(params: Any) -> Any:
                changed = variables | {"params": params}
                logits, _ = model.apply(changed, images, train=True, mutable=["batch_stats"])
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
                return losses.mean(), logits

            gradients, logits = jax.grad(loss, has_aux=True)(variables["params"])
            return logits, gradients

        expected = jax.device_get(both(*jax.device_put((variables, images, labels), cpu)))
        arguments = jax.device_put((variables, images, labels), jax.devices()[0])
        first, second = (jax.device_get(both(*arguments)) for _ in range(2))

    def far(a: Any, b: Any) -> float:
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        norm = np.linalg.norm
        return max(float(norm(x - y)) / max(float(norm(y)), 1e-12) for x, y in pairs)

    repeated = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    differ = sum(x.tobytes() != y.tobytes() for x, y in repeated)
    return {
        "logits_vs_cpu": far(first[0], expected[0]),
        "gradients_vs_cpu": far(first[1], expected[1]),
        "arrays_not_repeated": differ,
    }


def copy_rate(megabytes: int) -> float:
    """Returns the bytes a second that a copy on the device reads and writes."""
    array = jnp.zeros(megabytes << 18, jnp.float32)
    next_array = jax.jit(lambda x: x + 1, donate_argnums=0)
    array = jax.block_until_ready(next_array(array))
    start = time.perf_counter()
    for _ in range(20):
        array = next_array(array)  # in the same memory: new memory would take time
    jax.block_until_ready(array)
    seconds = time.perf_counter() - start
    return 20 * 2 * (megabytes << 20) / seconds


def compare(name: str, size: int, count: int, steps: int, copies: float) -> dict[str, float]:
    """Measures images/s of our network and of the textbook's, in turn."""
    ours = our_steps(name, size, count)
    ours.run(3)
    figures = ours.facts()
    rates: dict[str, list[float]] = {"": []}
    textbook = textbook_steps(name, size, count) if name in TEXTBOOK else None
    if textbook:
        textbook.run(3)
        figures |= {f"textbook_{key}": value for key, value in textbook.facts().items()}
        rates["textbook_"] = []
    for _ in range(3):
        rates[""].append(count / ours.run(steps))
        if textbook:
            rates["textbook_"].append(count / textbook.run(steps))
    figures |= {
        f"{key}images_per_second": statistics.median(values) for key, values in rates.items()
    }
    if textbook:
        pairs = zip(rates[""], rates["textbook_"], strict=True)
        figures["vs_textbook"] = statistics.median(a / b for a, b in pairs)
    moved = figures["images_per_second"] * figures["megabytes_per_image"] * 1e6
    figures["share_of_copy_rate"] = moved / copies
    return figures


def deterministic(name: str, size: int, count: int, steps: int) -> dict[str, float]:
    """Measures what repeatable kernels cost, and whether the bits of three steps repeat."""
    model, usual = flaxres.create_model(name, dtype=jnp.bfloat16), our_steps(name, size, count)
    fixed = Steps(model, size, count, {"xla_gpu_deterministic_ops": True})
    figures: dict[str, float] = {}
    for key, program in (("usual", usual), ("deterministic", fixed)):
        first = jax.device_get(program.carry)
        ends = []
        for _ in range(2):
            program.carry = jax.device_put(first)
            program.run(3)
            ends.append(jax.tree.leaves(jax.device_get(program.carry)))
        differ = sum(a.tobytes() != b.tobytes() for a, b in zip(*ends, strict=True))
        figures[f"{key}_arrays_not_repeated"] = differ
    ratios = [usual.run(steps) / fixed.run(steps) for _ in range(3)]
    return figures | {"deterministic_vs_usual": statistics.median(ratios)}


def torch_rate(name: str, size: int, count: int, steps: int, smoke: bool) -> dict[str, float]:
    """Measures images/s of PyTorch's network in bfloat16, channels_last, compiled."""
    torch, timm = torch_and_timm()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    zoo = importlib.import_module("torchvision.models")
    model = getattr(zoo, name)() if hasattr(zoo, name) else timm.create_model(name)
    model = model.train().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, nesterov=True)
    images = torch.randn(count, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(count, device=device) % 10

    def train() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    # The usual backend compiles C++ for CPUs, which takes minutes.
    step = torch.compile(train, backend="eager" if smoke else "inductor")
    start = time.perf_counter()
    for _ in range(3):
        step().item()
    compiling, start = time.perf_counter() - start, time.perf_counter()
    for _ in range(3 * steps):
        loss = step()
    loss.item()
    return {
        "torch_images_per_second": 3 * steps * count / (time.perf_counter() - start),
        "torch_compile_seconds": compiling,
    }


def profiled(made: Any, row: Any, title: str, out: str | None) -> dict[str, float]:
    """Profiles one of `our_steps` and `textbook_steps` of a network."""
    name, size, counts = row
    return profile(made(name, size, counts[0]), title, out)


def rates(row: Any, steps: int, copies: float, smoke: bool) -> Iterator[tuple[str, Measurement]]:
    """Yields the measurements of a network against the textbook's and PyTorch's."""
    name, size, counts = row
    key = f"{name}_{counts[0]}"
    yield key, functools.partial(compare, name, size, counts[0], steps, copies)
    if name != "resnet20":
        yield key, functools.partial(torch_rate, name, size, counts[0], steps, smoke)


def programs(
    part: str, rows: list[Any], steps: int, copies: float, chosen: argparse.Namespace
) -> Iterator[tuple[str, Measurement]]:
    """Yields the measurements of a part with their names, the most important first."""
    (name, size, counts), *others = rows
    key = f"{name}_{counts[0]}"
    if part == "main":
        yield from rates(rows[0], steps, copies, chosen.smoke)
        for title, made in (("flaxres", our_steps), ("textbook", textbook_steps)):
            measure = functools.partial(profiled, made, rows[0], title, chosen.out)
            yield f"{key}_{title}_milliseconds", measure
        yield "correctness", functools.partial(correctness, size)
    elif part == "deterministic":
        yield f"{name}_repeated", functools.partial(deterministic, name, size, counts[0], steps)
    elif part == "sweep":
        for count in counts[1:]:
            yield f"{name}_{count}", functools.partial(compare, name, size, count, steps, copies)
    else:
        for row in others:
            yield from rates(row, steps, copies, chosen.smoke)


def measured(
    measurements: list[tuple[str, Measurement]], figures: dict[str, Any], chosen: Any, clock: Clock
) -> None:
    """Runs measurements while time is left, and adds them to the figures and to gpu.json."""
    for name, measure in measurements:
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
            values = ", ".join(
                f"{key} {value:,.3g}" if isinstance(value, float | int) else f"{key} {value}"
                for key, value in figures[name].items()
            )
            print(f"{name}: {values}", flush=True)


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument(
        "--out",
        default=os.environ.get("OUT"),
        help="folder for gpu.json, written after each measurement",
    )
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes, to check that the program works"
    )
    chosen = parser.parse_args()
    clock = Clock(60 * chosen.minutes)
    figures: dict[str, Any] = {"device": jax.devices()[0].device_kind}
    rows, steps = (SMOKE, 2) if chosen.smoke else (PROGRAMS, 20)
    figures["versions"] = {
        name: importlib.import_module(name).__version__
        for name in ("jax", "flax", "optax", "torch", "torchvision", "timm")
    }
    copies = copy_rate(64 if chosen.smoke else 2048)
    figures["copy_gigabytes_per_second"] = copies / 1e9
    for part in chosen.parts:
        measured([*programs(part, rows, steps, copies, chosen)], figures, chosen, clock)
    for figure in figures.values():
        if isinstance(figure, dict) and {"images_per_second", "torch_images_per_second"} <= set(
            figure
        ):
            figure["vs_torch"] = figure["images_per_second"] / figure["torch_images_per_second"]
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
