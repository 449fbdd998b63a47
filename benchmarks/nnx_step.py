"""Training steps of the NNX and the Linen form of a network, side by side on this machine.

    python -m benchmarks.nnx_step [--json] [--network resnet50] [--pairs 9]

Seconds of a step of `flaxres.nnx` in `nnx.jit`, with an `nnx.Optimizer`, over those of a step of
the Linen module in `jax.jit`, in float32, with SGD with momentum, on a batch that stays in memory.
Each has its own process. The two take turns, a step each, and change who is first from pair to
pair. A ratio above 1 means that NNX is slower.

  ..._nnx_over_linen      median of the ratios of the pairs
  ..._nnx_seconds         median of NNX's steps
  ..._linen_seconds       median of Linen's steps
"""

import os
import statistics

from benchmarks import command
from benchmarks.train_step import WARM, started

# Side of the images, and images in a batch.
SIZES = {"resnet50": (224, 16), "resnet20": (32, 128)}


def compare(name: str, pairs: int) -> dict[str, float]:
    """Returns the ratio of the two steps, and the seconds of each."""
    size, batch = SIZES[name]
    taken: dict[str, list[float]] = {"nnx": [], "module": []}
    with (
        started("nnx", name, size, batch, False) as nnx_,
        started("module", name, size, batch, False) as linen,
    ):
        steps = {"nnx": nnx_, "module": linen}
        for pair in range(WARM + pairs):
            for program in ("nnx", "module") if pair % 2 else ("module", "nnx"):
                seconds = steps[program]()
                if pair >= WARM:
                    taken[program].append(seconds)
    ratios = [a / b for a, b in zip(taken["nnx"], taken["module"], strict=True)]
    return {
        f"{name}_nnx_over_linen": statistics.median(ratios),
        f"{name}_nnx_seconds": statistics.median(taken["nnx"]),
        f"{name}_linen_seconds": statistics.median(taken["module"]),
    }


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--network", choices=SIZES, default="resnet50", help="network (resnet50)")
    parser.add_argument("--pairs", type=int, default=9, help="pairs that count (9)")
    chosen = parser.parse_args()
    if inherited := [name for name in ("GLIBC_TUNABLES", "XLA_FLAGS") if name in os.environ]:
        raise SystemExit(f"{' and '.join(inherited)} would apply to both networks: unset them")
    command.show(compare(chosen.network, chosen.pairs), chosen.json)


if __name__ == "__main__":
    main()
