"""Peak memory of a training step of ResNet-50 on CPUs (224 pixels, batch 16), on Linux.

    python -m benchmarks.memory [--json]

Each network runs in a process of its own, with SGD with momentum, on a batch that stays in memory.
Ours has what `train.py` gives it. The textbook Flax network and torchvision's run as their users
run them, with the memory management of JAX and of PyTorch.

  NAME_DTYPE_gigabytes   the largest memory of the process while it runs sixteen steps, after the
                         first one, which compiles

It takes four minutes on two cores, and needs the extra `parity`.
"""

import multiprocessing
import pathlib
import re
from multiprocessing.connection import Connection

import numpy as np

from benchmarks import command
from benchmarks.train_step import PROGRAMS
from flaxres.cli._process import dispatch_inline, keep_memory

STEPS = 16
NETWORKS = [("ours", "float32"), ("ours", "bfloat16"), ("textbook", "float32")]
NETWORKS += [("torch", "float32"), ("torch", "bfloat16")]


def peak(connection: Connection, program: str, dtype: str) -> None:
    """Sends the peak memory of a network's steps in gigabytes."""
    if program == "ours":
        keep_memory()
        dispatch_inline()
    rng = np.random.default_rng(0)
    images = rng.standard_normal((16, 224, 224, 3), np.float32)
    advance = PROGRAMS[program]("resnet50", dtype, images, rng.integers(0, 10, 16).astype(np.int32))
    advance()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is that from here on
    for _ in range(STEPS):
        advance()
    status = pathlib.Path("/proc/self/status").read_text()
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+)", status)
    connection.send(int(kilobytes) * 1024 / 1e9)


def main() -> None:
    parser = command.parser(__doc__)
    chosen = parser.parse_args()
    spawning = multiprocessing.get_context("spawn")
    figures: dict[str, float] = {}
    for program, dtype in NETWORKS:
        here, there = spawning.Pipe()
        process = spawning.Process(target=peak, args=(there, program, dtype))
        process.start()
        there.close()
        try:
            figures[f"{program}_{dtype}_gigabytes"] = here.recv()
        except EOFError:
            process.join()
            ended = f"ended with {process.exitcode}: its message is above"
            raise SystemExit(f"the process of {program} {dtype} {ended}") from None
        process.join()
    command.show(figures, chosen.json, ".2f")


if __name__ == "__main__":
    main()
