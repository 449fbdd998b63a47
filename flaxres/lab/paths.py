"""How much each block adds to what goes past it: the norm of the residual branch over that of the shortcut, by block, before and after training."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from flaxres import figures
from flaxres.lab.networks import DEEP, Trained, Variables, examples, watched
from flaxres.lab.report import STYLES, Claim, Experiment, Say, Settings
from flaxres.models.network import Network

EXAMPLES = 250


@dataclasses.dataclass(frozen=True)
class Result:
    """(blocks,) each: |y - x| / |x| of a block's input x and output y, mean over test images; nan where the block changes the shape.

    `trained` and `born` (He's initialisation with all scales one) are of the residual network, `plain` of the plain one after training. `path` has,
    after each block, the cosine between what is there and what the first block of the stage gave: how much of the early information is still there.
    """

    trained: np.ndarray
    born: np.ndarray
    plain: np.ndarray
    path: dict[str, np.ndarray]


def run(settings: Settings, say: Say) -> Result:
    networks = {kind: Trained(settings, kind, DEEP, say) for kind in ("plain", "residual")}
    images, _ = examples(
        networks["residual"].run, networks["residual"].run.evaluation, EXAMPLES, settings.seed
    )
    residual = networks["residual"]
    fresh: Variables = dict(residual.model.init(jax.random.key(settings.seed), images[:1]))
    fresh = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.ones_like(leaf) if path[-1].key == "scale" else leaf, fresh
    )
    _, moved = residual.model.apply(fresh, images, train=True, mutable=["batch_stats"])
    momentum = residual.model.bn_momentum
    settled = fresh | {
        "batch_stats": jax.tree.map(
            lambda old, new: (new - momentum * old) / (1 - momentum),
            fresh["batch_stats"],
            moved["batch_stats"],
        )
    }
    measured = {
        "trained": contributions(residual.model, residual.variables, images),
        "born": contributions(residual.model, settled, images),
        "plain": contributions(networks["plain"].model, networks["plain"].variables, images),
    }
    shares = {name: share for name, (share, _) in measured.items()}
    path = {"residual": measured["trained"][1], "plain": measured["plain"][1]}
    changes = {name: f"{100 * np.nanmean(share):.0f}%" for name, share in shares.items()}
    say(
        f"  a residual block changes its input by {changes['trained']} on average, a plain one by {changes['plain']}"
    )
    return Result(shares["trained"], shares["born"], shares["plain"], path)


def contributions(
    model: Network, variables: Variables, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of each block: |y - x| / |x|, and the cosine between y and the output of its stage's first block, both centred over the images."""

    def measured(variables: Variables, images: jax.Array) -> tuple[list[Any], list[Any]]:
        shares: list[Any] = []
        cosines: list[Any] = []
        first: list[jax.Array] = []

        def measure(_: nn.Module, x: jax.Array, y: jax.Array) -> jax.Array:
            same = x.shape == y.shape
            if not same or not first:
                first[:] = [y]
            shares.append((norms(y - x) / jnp.maximum(norms(x), 1e-12)).mean() if same else jnp.nan)
            # Activations are not negative, and any two of them alike so far: their means over the images are taken off.
            here, there = y - y.mean(0), first[0] - first[0].mean(0)
            cosines.append(
                (
                    (here * there).sum((1, 2, 3)) / jnp.maximum(norms(here) * norms(there), 1e-12)
                ).mean()
            )
            return y

        watched(lambda: model.apply(variables, images), measure)
        return shares, cosines

    shares, cosines = jax.jit(measured)(variables, images)
    return np.array(shares, float), np.array(cosines, float)


def norms(x: jax.Array) -> jax.Array:
    """Of each image's activations, (N,)."""
    return jnp.sqrt(jnp.square(x).sum((1, 2, 3)))


def draw(result: Result) -> Any:
    plt = figures.pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained")
    blocks = 1 + np.arange(len(result.trained))
    for values, label, kind in (
        (result.trained, "residual, trained", "residual"),
        (result.born, "residual, at initialisation", "preactivation"),
        (result.plain, "plain, trained", "plain"),
    ):
        left.plot(blocks, np.maximum(values, 1e-3), label=label, markersize=4, **STYLES[kind])
    left.set(title="What a block changes", ylabel="|output - input| / |input|", yscale="log")
    for kind, values in result.path.items():
        right.plot(blocks, values, label=f"{kind}, trained", markersize=4, **STYLES[kind])
    right.set(
        title="What is left of a stage's first block",
        ylabel="cosine with the first block's output, centred",
        ylim=(-0.1, 1.05),
    )
    for axes in (left, right):
        axes.set(xlabel="block (gaps and jumps: a new stage)")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"What blocks change and what passes them, in networks of {DEEP} layers")
    return figure


def rows(result: Result) -> list[dict[str, Any]]:
    cosines = result.path
    return [
        {
            "block": i + 1,
            "residual_trained": result.trained[i],
            "residual_born": result.born[i],
            "plain_trained": result.plain[i],
            "residual_cosine": cosines["residual"][i],
            "plain_cosine": cosines["plain"][i],
        }
        for i in range(len(result.trained))
    ]


def claims(result: Result) -> list[Claim]:
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
