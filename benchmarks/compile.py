"""Compile time of a training step by depth: `python -m benchmarks.compile [--json]`.

  resnet1202_vs_resnet20          ResNet-1202 with scanned blocks over ResNet-20; batch 2, 32 pixels
  resnet152_scanned_vs_unrolled   at 64 pixels

Each is the median of three lowerings and compilations, alternating, in one process. The program
also runs four steps of ResNet-1202 and prints losses, to show that it trains.
"""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

import flaxres
from benchmarks import command
from benchmarks.textbook import plain_step


def training_step(name: str, size: int, **attributes: Any) -> tuple[Any, tuple[Any, ...]]:
    """Returns an SGD step and its arguments."""
    model, tx = flaxres.create_model(name, **attributes), optax.sgd(0.01, 0.9)
    images, labels = jax.random.normal(jax.random.key(0), (2, size, size, 3)), jnp.arange(2)
    variables = jax.jit(model.init)(jax.random.key(1), images)
    return plain_step(model, tx), (variables, tx.init(variables["params"]), images, labels)


def seconds(step: Any, arguments: tuple[Any, ...]) -> float:
    """Returns the seconds of lowering and compiling a step."""
    jax.clear_caches()
    start = time.perf_counter()
    jax.jit(step).lower(*arguments).compile()
    return time.perf_counter() - start


def ratio(first: Any, second: Any, pairs: int) -> float:
    """Returns the median of `pairs` ratios of compile times, measured in turn."""
    return statistics.median(seconds(*first) / seconds(*second) for _ in range(pairs))


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    chosen = parser.parse_args()
    deep, shallow = training_step("resnet1202", 32, scan_blocks=True), training_step("resnet20", 32)
    figures = {"resnet1202_vs_resnet20": ratio(deep, shallow, chosen.pairs)}
    variables, opt_state, images, labels = deep[1]
    step, losses = jax.jit(deep[0]), []
    for _ in range(4):
        variables, opt_state, loss = step(variables, opt_state, images, labels)
        losses.append(float(loss))
    figures |= {"resnet1202_first_loss": losses[0], "resnet1202_fourth_loss": losses[-1]}
    scanned = training_step("resnet152", 64, scan_blocks=True)
    unrolled = training_step("resnet152", 64)
    figures["resnet152_scanned_vs_unrolled"] = ratio(scanned, unrolled, chosen.pairs)
    command.show(figures, chosen.json)


if __name__ == "__main__":
    main()
