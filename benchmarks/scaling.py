"""Weak scaling on this machine: `python -m benchmarks.scaling [--json] [--processes 1,2]`.

Each process has one core and 64 images a step (ResNet-20, batch statistics of each process's 64).
All are joined on loopback and run the training step of `flaxres train`, on data that stay in
memory. `efficiency_N` is images/s of N processes over N times those of one, the median of
alternating pairs. Loopback is a slow network, and the cores share caches and memory, so this is an
upper bound of the loss in the step itself.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks import command

IMAGES, SIZE, STEPS = 64, 32, 15


def worker(coordinator: str, processes: int, process: int) -> None:
    """Runs one process, which prints the images/s of all processes together."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[process]})
    from flaxres.cli._process import keep_memory

    keep_memory()
    import jax
    import numpy as np

    from flaxres import Config, DataConfig, ModelConfig, TrainConfig, use_native_convolutions
    from flaxres.diagnostics.described import described_run
    from flaxres.training import hosts
    from flaxres.training.mesh import place, split

    use_native_convolutions()
    hosts.join(coordinator, processes, process)
    batch = IMAGES * processes
    run = described_run(
        Config(
            ModelConfig("resnet20", bn_group=IMAGES),
            DataConfig("cifar10", image_size=SIZE),
            train=TrainConfig(batch),
        )
    )
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "image": rng.integers(0, 256, (batch, SIZE, SIZE, 3), np.uint8),
        "label": rng.integers(0, 10, batch).astype(np.int32),
    }
    step, state = run.train_step(), run.first_state()
    start = 0.0
    for i in range(STEPS + 3):
        positions = np.arange(i * batch, (i + 1) * batch, dtype=np.uint32)
        rows = arrays | {"position": positions}
        batch_on_mesh = {name: place(array, split(run.mesh)) for name, array in rows.items()}
        state, metrics = step(state, np.uint32(0), batch_on_mesh)
        jax.block_until_ready(metrics)
        if i == 2:
            start = time.perf_counter()
    print(json.dumps(STEPS * batch / (time.perf_counter() - start)))


def loopback() -> str:
    """Returns a loopback address with a free port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def rate(processes: int) -> float:
    """Returns images/s of so many processes."""
    words = [sys.executable, "-m", "benchmarks.scaling", "--coordinator", loopback()]
    words += ["--processes", str(processes), "--process"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen([*words, str(i)], stdout=subprocess.PIPE, text=True, env=environment)
        for i in range(processes)
    ]
    texts = [process.communicate(timeout=300)[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit("a process failed; its message is above")
    return float(json.loads(texts[0].splitlines()[-1]))


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument(
        "--processes", default="1,2", help="numbers of processes, each at most the number of cores"
    )
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.coordinator:
        worker(chosen.coordinator, int(chosen.processes), chosen.process)
        return
    counts = [int(count) for count in chosen.processes.split(",") if int(count) > 1]
    ratios: dict[int, list[float]] = {count: [] for count in counts}
    alone: list[float] = []
    for _ in range(chosen.pairs):
        for count in counts:
            alone.append(rate(1))
            ratios[count].append(rate(count) / count / alone[-1])
    figures = {"images_per_second_1": statistics.median(alone)} | {
        f"efficiency_{count}": statistics.median(values) for count, values in ratios.items()
    }
    command.show(figures, chosen.json)


if __name__ == "__main__":
    main()
