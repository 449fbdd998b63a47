"""Compile time of a training step by depth: `python -m benchmarks.compile [--json] [NAME ...]`.

  resnet1202_vs_resnet20          ResNet-1202 with scanned blocks over ResNet-20; batch 2, 32 pixels
  resnet1202_vs_resnet110         both with scanned blocks; batch 2, 32 pixels
  resnet152_scanned_vs_unrolled   at 64 pixels

Each is the median of three lowerings and compilations, alternating, in one process. The program
also runs four steps of ResNet-1202 and prints losses, to show that it trains. With names, it
compares the scanned and the unrolled form of those networks alone, at 64 pixels, and gives the
seconds of both.
"""

import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import flaxres
from benchmarks import command
from benchmarks.textbook import plain_step


def training_step(
    name: str, size: int, shapes: bool = False, **attributes: Any
) -> tuple[Any, tuple[Any, ...]]:
    """Returns an SGD step and its arguments, or only their shapes."""
    model, tx = flaxres.create_model(name, **attributes), optax.sgd(0.01, 0.9)
    images, labels = jax.random.normal(jax.random.key(0), (2, size, size, 3)), jnp.arange(2)

    def initial(images: jax.Array) -> tuple[Any, Any]:
        variables = model.init(jax.random.key(1), images)
        return variables, tx.init(variables["params"])

    make = partial(jax.eval_shape, initial) if shapes else jax.jit(initial)
    return plain_step(model, tx), (*make(images), images, labels)


def seconds(step: Any, arguments: tuple[Any, ...]) -> float:
    """Returns the seconds of lowering and compiling a step."""
    jax.clear_caches()
    start = time.perf_counter()
    jax.jit(step).lower(*arguments).compile()
    return time.perf_counter() - start


def ratio(first: Any, second: Any, pairs: int) -> float:
    """Returns the median of `pairs` ratios of compile times, measured in turn."""
    return statistics.median(seconds(*first) / seconds(*second) for _ in range(pairs))


def scanned_and_unrolled(names: Sequence[str], pairs: int) -> dict[str, float]:
    """Returns the compile times of both forms of networks, without memory for their weights."""
    figures: dict[str, float] = {}
    for name in names:
        forms: dict[str, list[float]] = {"scanned": [], "unrolled": []}
        for _ in range(pairs):
            for form, taken in forms.items():
                step, arguments = training_step(name, 64, True, scan_blocks=form == "scanned")
                taken.append(seconds(step, arguments))
        figures |= {f"{name}_{form}_seconds": statistics.median(forms[form]) for form in forms}
        pairs_of_seconds = zip(forms["scanned"], forms["unrolled"], strict=True)
        figures[f"{name}_scanned_vs_unrolled"] = statistics.median(
            a / b for a, b in pairs_of_seconds
        )
    return figures


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks to compare instead")
    chosen = parser.parse_args()
    if chosen.names:
        command.show(scanned_and_unrolled(chosen.names, chosen.pairs), chosen.json)
        return
    deep, shallow = training_step("resnet1202", 32, scan_blocks=True), training_step("resnet20", 32)
    figures = {"resnet1202_vs_resnet20": ratio(deep, shallow, chosen.pairs)}
    shallow = training_step("resnet110", 32, scan_blocks=True)
    figures |= {"resnet1202_vs_resnet110": ratio(deep, shallow, chosen.pairs)}
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
