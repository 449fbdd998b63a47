"""The share of its input that each block changes, before and after training.

It is the norm of the residual branch divided by that of the shortcut.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from flaxres import figures
from flaxres.lab.claims import Claim
from flaxres.lab.drawing import STYLES, band, over_seeds
from flaxres.lab.networks import DEEP, Trained, Variables, examples, watched
from flaxres.lab.report import Experiment, Say, Settings, seed_by_seed
from flaxres.models.network import Network

EXAMPLES = 250


@dataclasses.dataclass(frozen=True)
class Result:
    """Changes by block: |y - x| / |x| of its input x and output y, mean over test images.

    Blocks that change the shape have nan.

    Attributes:
      trained: of the trained residual network.
      initial: of the residual network at initialisation (He's, with all scales one).
      plain: of the trained plain network.
      path: kind -> cosine between each block's output and that of the first block of its stage,
        which shows how much of the early information is still there.
    """

    trained: Float[np.ndarray, " blocks"]
    initial: Float[np.ndarray, " blocks"]
    plain: Float[np.ndarray, " blocks"]
    path: dict[str, Float[np.ndarray, " blocks"]]


@seed_by_seed
def run(settings: Settings, say: Say) -> Result:
    """Measures a plain and a residual network, which are trained if necessary.

    Args:
      settings: all but `image`, `weights` and `model` are used.
      say: receives lines of progress.
    """
    plain, residual = (Trained(settings, kind, DEEP, say) for kind in ("plain", "residual"))
    images, _ = examples(residual.run, residual.run.evaluation, EXAMPLES, settings.seed)
    initial = _initial(residual.model, images, settings.seed)
    measured = {
        "trained": contributions(residual.model, residual.variables, images),
        "initial": contributions(residual.model, initial, images),
        "plain": contributions(plain.model, plain.variables, images),
    }
    shares = {name: share for name, (share, _) in measured.items()}
    path = {"residual": measured["trained"][1], "plain": measured["plain"][1]}
    changes = {name: f"{100 * np.nanmean(share):.0f}%" for name, share in shares.items()}
    say(
        f"  a residual block changes its input by {changes['trained']} on average, a plain one by "
        f"{changes['plain']}"
    )
    return Result(shares["trained"], shares["initial"], shares["plain"], path)


def _initial(model: Network, images: Float[np.ndarray, "n s s 3"], seed: int) -> Variables:
    """Returns initial variables with all scales one and with the statistics of the images."""
    variables: Variables = dict(model.init(jax.random.key(seed), images[:1]))
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.ones_like(leaf) if path[-1].key == "scale" else leaf, variables
    )
    _, moved = model.apply(variables, images, train=True, mutable=["batch_stats"])
    momentum = model.bn_momentum
    statistics = jax.tree.map(
        lambda old, new: (new - momentum * old) / (1 - momentum),
        variables["batch_stats"],
        moved["batch_stats"],
    )
    return variables | {"batch_stats": statistics}


def contributions(
    model: Network, variables: Variables, images: Float[np.ndarray, "n s s 3"]
) -> tuple[Float[np.ndarray, " blocks"], Float[np.ndarray, " blocks"]]:
    """Measures what each block changes, and what passes it.

    Args:
      model: the network.
      variables: its variables.
      images: normalised images.

    Returns:
      |y - x| / |x|, nan for blocks that change the shape; and the cosine between y and the output
      of the first block of the stage, both centred over the images.
    """

    def measured(variables: Variables, images: jax.Array) -> tuple[list[Any], list[Any]]:
        shares: list[Any] = []
        cosines: list[Any] = []
        first: list[jax.Array] = []

        def measure(_: nn.Module, x: jax.Array, y: jax.Array) -> jax.Array:
            same = x.shape == y.shape
            if not same or not first:
                first[:] = [y]
            shares.append((norms(y - x) / jnp.maximum(norms(x), 1e-12)).mean() if same else jnp.nan)
            # Activations are not negative, so that any two of them are alike. Their means over the
            # images are subtracted for that reason.
            here, there = y - y.mean(0), first[0] - first[0].mean(0)
            product = (here * there).sum((1, 2, 3))
            cosines.append((product / jnp.maximum(norms(here) * norms(there), 1e-12)).mean())
            return y

        watched(lambda: model.apply(variables, images), measure)
        return shares, cosines

    shares, cosines = jax.jit(measured)(variables, images)
    return np.array(shares, float), np.array(cosines, float)


def norms(x: Float[Array, "n h w c"]) -> Float[Array, " n"]:
    """Returns the norm of each image's activations."""
    return jnp.sqrt(jnp.square(x).sum((1, 2, 3)))


def draw(results: Sequence[Result]) -> Any:
    """Draws changes and cosines by block; returns a matplotlib figure."""
    plt = figures.pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained")
    blocks = 1 + np.arange(len(results[0].trained))
    for name, label, kind in (
        ("trained", "residual, trained", "residual"),
        ("initial", "residual, at initialisation", "preactivation"),
        ("plain", "plain, trained", "plain"),
    ):
        changes = [np.maximum(getattr(result, name), 1e-3) for result in results]
        band(left, blocks, changes, label=label, markersize=4, **STYLES[kind])
    left.set(title="What a block changes", ylabel="|output - input| / |input|", yscale="log")
    for kind in results[0].path:
        cosines = [result.path[kind] for result in results]
        band(right, blocks, cosines, label=f"{kind}, trained", markersize=4, **STYLES[kind])
    right.set(
        title="What is left of a stage's first block",
        ylabel="cosine with the first block's output, centred",
        ylim=(-0.1, 1.05),
    )
    for axes in (left, right):
        axes.set(xlabel="block (gaps and jumps: a new stage)")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(
        f"What blocks change and what passes them, in networks of {DEEP} layers"
        + over_seeds(results)
    )
    return figure


def rows(result: Result) -> list[dict[str, Any]]:
    """Returns one row for each block."""
    cosines = result.path
    return [
        {
            "block": i + 1,
            "residual_trained": result.trained[i],
            "residual_initial": result.initial[i],
            "plain_trained": result.plain[i],
            "residual_cosine": cosines["residual"][i],
            "plain_cosine": cosines["plain"][i],
        }
        for i in range(len(result.trained))
    ]


def claims(result: Result) -> list[Claim]:
    """Tests whether residual blocks change less, and keep more of the early features."""
    third = len(result.trained) // 3
    ends = [third - 1, 2 * third - 1, 3 * third - 1]
    left = {kind: float(values[ends].mean()) for kind, values in result.path.items()}
    share = {
        kind: float(np.nanmean(values))
        for kind, values in (("plain", result.plain), ("residual", result.trained))
    }
    return [
        Claim(
            f"Later layers still get what earlier ones found ({DEEP} layers)",
            "cosine between a stage's first and last output, mean of stages",
            left["plain"],
            left["residual"],
            left["residual"] > left["plain"] + 0.1,
        ),
        Claim(
            "A trained residual block changes less of what passes it than a plain one",
            "|output - input| / |input|, mean over blocks",
            share["plain"],
            share["residual"],
            share["residual"] < share["plain"],
        ),
    ]


EXPERIMENT = Experiment("what the branches add to the shortcuts", run, draw, rows, claims)
