"""Agreement with timm at small and odd image sizes: `python -m benchmarks.sides [PATTERN ...]`.

Gives every network that timm has too square images of 1 to 65 pixels, and oblong ones. Each size
must be refused before tracing, or give feature maps of timm's shapes. At some sizes of each network
(--values N, drawn from --seed) the logits are compared too. Networks that timm lacks are traced at
each size, and their maps compared with `extents`.

The program prints a line for each network, and exits with 1 if a size gives other shapes, or logits
more than 1e-4 of the largest logit apart. Needs the extra `parity` (PyTorch, timm).
"""

import dataclasses
import json
import os
import random
import sys
from typing import Any

from benchmarks import command, quick

# Each size of each network is compiled once and run once.
os.environ["XLA_FLAGS"] = quick.flags(level=0)

import jax
import jax.numpy as jnp
import numpy as np

import flaxres
from benchmarks.parity import difference, feature_names, reference
from benchmarks.peers import torch_and_timm
from flaxres.errors import unknown
from flaxres.models.network import Network
from flaxres.models.registry import list_models
from flaxres.weights.transfer import variables_from_torch

Size = tuple[int, int]
SIZES: list[Size] = [
    *((side, side) for side in range(1, 66)),
    *((32, side) for side in (1, 7, 31, 33, 47, 64, 65)),
    *((side, 64) for side in (2, 9, 17, 33, 63, 65)),
]
CLASSES, BOUND = 10, 1e-4


@dataclasses.dataclass
class Result:
    """Sizes of one network by outcome.

    Attributes:
      agreed: computed by both, with maps of the same shapes.
      refused: refused by both.
      only_timm: computed by timm and refused here.
      only_ours: computed here and refused by timm.
      wrong: sizes whose maps have other shapes.
      compared: sizes whose logits were compared.
      worst: largest relative difference of the logits.
    """

    agreed: list[Size] = dataclasses.field(default_factory=list)
    refused: list[Size] = dataclasses.field(default_factory=list)
    only_timm: list[Size] = dataclasses.field(default_factory=list)
    only_ours: list[Size] = dataclasses.field(default_factory=list)
    wrong: list[Size] = dataclasses.field(default_factory=list)
    compared: int = 0
    worst: float = 0.0

    def line(self, name: str) -> str:
        """Returns one line of text."""
        counts = ", ".join(
            f"{len(sizes)} {word}"
            for word, sizes in (
                ("agree", self.agreed),
                ("refused by both", self.refused),
                ("refused here only", self.only_timm),
                ("by timm only", self.only_ours),
                ("WRONG", self.wrong),
            )
            if sizes
        )
        return f"{name}: {counts}; logits at {self.compared} sizes within {self.worst:.1e}"


def extents(model: Network, size: Size) -> list[Size] | None:
    """Returns the extents that the network states for its stages, or None if it refuses."""
    rows, columns = (model.extents(side) for side in size)
    return None if rows is None or columns is None else list(zip(rows, columns, strict=True))


def images(size: Size) -> np.ndarray:
    """Returns one normalised image."""
    return np.random.default_rng(size).normal(size=(1, *size, 3)).astype(np.float32)


class Timm:
    """A network of timm with random parameters, and the shapes of its maps."""

    def __init__(self, name: str) -> None:
        self.torch, _ = torch_and_timm()
        self.network = reference(name, num_classes=CLASSES)
        self.shapes: dict[str, Size] = {}
        modules = dict(self.network.named_modules())
        for ours, theirs in feature_names(name, self.network).items():
            modules[theirs].register_forward_hook(
                lambda _, __, y, ours=ours: self.shapes.update({ours: tuple(y.shape[2:])})
            )

    def __call__(self, size: Size) -> tuple[np.ndarray, list[Size]] | None:
        """Returns the logits and the extents of the stages' maps, or None if timm can't."""
        self.shapes.clear()
        try:
            with self.torch.no_grad():
                tensor = self.torch.from_numpy(images(size).transpose(0, 3, 1, 2).copy())
                logits = self.network(tensor).numpy()
        except RuntimeError:
            return None
        if not np.isfinite(logits).all():
            return None
        return logits, [self.shapes[f"stage{i}"] for i in range(1, len(self.shapes))]


def compare(name: str, values: int, seed: int) -> Result:
    """Compares a network with timm's at each size."""
    theirs, result = Timm(name), Result()
    model: Any = flaxres.create_model(name, num_classes=CLASSES)
    logits: dict[Size, np.ndarray] = {}
    for size in SIZES:
        ours, outcome = extents(model, size), theirs(size)
        if outcome is None:
            (result.refused if ours is None else result.only_ours).append(size)
        elif ours is None:
            result.only_timm.append(size)
        else:
            logits[size] = outcome[0]
            (result.agreed if ours == outcome[1] else result.wrong).append(size)
    state = {key: value.numpy() for key, value in theirs.network.state_dict().items()}
    # A scanned network compiles a block of each stage once.
    scanned = model.clone(scan_blocks=True, parent=None)
    variables = variables_from_torch(state, scanned)
    chosen = random.Random(f"{name} {seed}").sample(sorted(logits), min(values, len(logits)))
    for size in chosen:
        ours = jax.jit(scanned.apply)(variables, images(size))
        result.worst = max(result.worst, difference(ours, logits[size]))
    result.compared = len(chosen)
    return result


def trace(name: str) -> Result:
    """Traces a network at each size, and compares the shapes of its maps with `extents`."""
    # A scanned network traces a block of each stage once.
    model: Any = flaxres.create_model(name, num_classes=CLASSES, scan_blocks=True)
    initialise = jax.tree_util.Partial(model.init_with_output, features=True)
    result = Result()
    for size in SIZES:
        if (stated := extents(model, size)) is None:
            result.refused.append(size)
            continue
        shape = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
        maps = jax.eval_shape(initialise, jax.random.key(0), shape)[0]
        traced = [maps[f"stage{i}"].shape[1:3] for i in range(1, len(stated) + 1)]
        (result.agreed if traced == stated else result.wrong).append(size)
    return result


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("patterns", nargs="*", default=["*"], help="names of networks")
    parser.add_argument("--values", type=int, default=8, help="sizes whose logits are compared")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    _, timm = torch_and_timm()
    names = [name for pattern in chosen.patterns for name in list_models(pattern)]
    if not names:
        raise unknown("model", " ".join(chosen.patterns), list_models())
    known, results = set(timm.list_models()), {}
    for name in dict.fromkeys(names):
        results[name] = compare(name, chosen.values, chosen.seed) if name in known else trace(name)
        print(results[name].line(name), file=sys.stderr, flush=True)
    figures = {
        "networks": len(results),
        "sizes": len(SIZES),
        "wrong_shapes": sum(len(result.wrong) for result in results.values()),
        "by_timm_only_refused": sum(len(result.only_ours) for result in results.values()),
        "refused_here_only": sum(len(result.only_timm) for result in results.values()),
        "compared": sum(result.compared for result in results.values()),
        "largest_relative_difference": max(result.worst for result in results.values()),
    }
    print(
        json.dumps(figures) if chosen.json else "\n".join(f"{k}: {v}" for k, v in figures.items())
    )
    sys.exit(int(figures["wrong_shapes"] > 0 or figures["largest_relative_difference"] > BOUND))


if __name__ == "__main__":
    main()
