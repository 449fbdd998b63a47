"""The kernels of a step on a device: their time, and the memory that they read and write.

    python -m benchmarks.kernels OUT/flaxres OUT/textbook

reads the traces and optimised programs that `benchmarks/gpu.sh --out OUT` wrote, here or on another
machine. It prints the milliseconds of a step by type of kernel, and the slowest kernels with the
bytes of their operands and results over their time. A kernel that is far below the copy rate of the
device, and that is no convolution or product, is worth a look.
"""

import argparse
import collections
import gzip
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from flaxres.diagnostics.compiled import computations, instruction_bytes

# Type of kernel -> what its names match.
KERNELS = {
    "convolution": r"conv(?!ert)|cudnn|wgrad|dgrad|fprop|implicit",
    "product": "gemm|cublas|cutlass|dot|nvjet",
    "copy": "copy|transpose|memcpy|nchwtonhwc|nhwctonchw",
    "reduction": "reduce",
    "elementwise": "fusion|loop|elementwise",
}
TRACE, PROGRAM = ".xplane.pb.gz", ".hlo.txt.gz"
STEPS, SHOWN = 3, 40


class Kernel(NamedTuple):
    """A run of a kernel, with the operation of the program that it computes."""

    name: str
    operation: str
    nanoseconds: float


def profile(steps: Any, title: str, out: str | None) -> dict[str, float]:
    """Returns the milliseconds of a step by type of kernel, and the rest of a profiled step.

    Args:
      steps: a `benchmarks.gpu.Steps` that has run.
      title: name of the two files that are written.
      out: folder for them, or None for none.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            seconds = steps.run(STEPS)
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        spent = by_type(kernels(path))
        if out:
            with gzip.open(pathlib.Path(out, title + TRACE), "wb") as file:
                file.write(path.read_bytes())
            with gzip.open(pathlib.Path(out, title + PROGRAM), "wt") as file:
                file.write(steps.compiled.as_text())
    return spent | {"rest of the profiled step": 1e3 * seconds - sum(spent.values())}


def kernels(path: pathlib.Path) -> Iterator[Kernel]:
    """Yields the runs of kernels in a trace of a GPU, or of a CPU if it has no GPU."""
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    on_gpu = [plane for plane in planes if "GPU" in plane.name]
    for plane in on_gpu or planes:
        for event in (event for line in plane.lines for event in line.events):
            facts = dict(event.stats)
            if "hlo_op" in facts:
                yield Kernel(event.name, str(facts["hlo_op"]), event.duration_ns)


def by_type(runs: Iterator[Kernel]) -> dict[str, float]:
    """Returns the milliseconds of a step by type of kernel, the largest first."""
    spent = collections.defaultdict[str, float](float)
    for run in runs:
        spent[kernel_type(f"{run.operation} {run.name}")] += run.nanoseconds
    return {kernel: nanoseconds / STEPS / 1e6 for kernel, nanoseconds in largest(spent)}


def largest(values: dict[str, float]) -> list[tuple[str, float]]:
    """Returns the items with the largest values first."""
    return sorted(values.items(), key=lambda item: -item[1])


def kernel_type(name: str) -> str:
    """Returns the first type in `KERNELS` that a kernel's name matches."""
    matching = (kernel for kernel, form in KERNELS.items() if re.search(form, name.lower()))
    return next(matching, "other")


def show(stem: pathlib.Path) -> None:
    """Prints the times of a profiled step."""
    with tempfile.NamedTemporaryFile(suffix=".xplane.pb") as file:
        with gzip.open(f"{stem}{TRACE}", "rb") as packed:
            shutil.copyfileobj(packed, file)
        file.flush()
        runs = list(kernels(pathlib.Path(file.name)))
    with gzip.open(f"{stem}{PROGRAM}", "rt") as text:
        parts = computations(text.read())
    # A kernel has the name of its instruction, without dots. Equal ones share a kernel.
    moved = {name.replace(".", "_"): size for name, size in instruction_bytes(parts).items()}
    lines = {each.name.replace(".", "_"): each.line for each in parts["ENTRY"]}
    values = ", ".join(f"{kernel} {value:.2f}" for kernel, value in by_type(iter(runs)).items())
    print(f"{stem.name}, milliseconds a step: {values}")
    spent = collections.defaultdict[str, float](float)
    kernels_of = collections.defaultdict[str, collections.Counter[str]](collections.Counter)
    for run in runs:
        # In a CUDA graph the operation is the graph, and the kernel has the instruction's name.
        name = (run.name if run.name in moved else run.operation).replace(".", "_")
        spent[name] += run.nanoseconds
        kernels_of[name][run.name] += 1
    total = sum(spent.values())
    print(f"{'ms':>7}{'%':>6}{'runs':>6}{'MB':>8}{'GB/s':>7}  operation, kernel, source")
    for name, nanoseconds in largest(spent)[:SHOWN]:
        # A library's operation may take several kernels.
        kernel, count = kernels_of[name].most_common(1)[0]
        each, size = nanoseconds / STEPS, moved.get(name, 0) * count / STEPS
        source = re.search(r'op_name="([^"]*)"', lines.get(name, ""))
        print(
            f"{each / 1e6:7.3f}{100 * nanoseconds / total:6.2f}{count / STEPS:6.0f}"
            f"{size / 1e6:8.1f}{size / each:7.0f}  {name}, {kernel[:40]}, "
            f"{source[1][-90:] if source else ''}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "stems", nargs="+", type=pathlib.Path, metavar="FILE", help=f"without {TRACE}"
    )
    for stem in parser.parse_args().stems:
        show(stem)


if __name__ == "__main__":
    main()
