"""Accuracy of trained networks without some of their blocks (Veit et al. 2016).

It includes the article's thought experiment: 250 of 300 blocks bypassed.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Float, Int

from flaxres import figures
from flaxres.lab.claims import Claim
from flaxres.lab.drawing import STYLES, band, over_seeds
from flaxres.lab.networks import DEEP, KINDS, Trained, bypassed, examples, removable
from flaxres.lab.report import Experiment, Say, Settings, seed_by_seed
from flaxres.lab.stacks import Kind, Params, Stack, digits

BLOCKS, BYPASSED, EVERY = 300, 250, 10
DRAWS, STEPS, BATCH, RATE, DROPPED = 5, 600, 128, 1e-3, 0.5
RANKED = 500
TAKEN = (1, 2, 4, 8, 12, 16, 20)


@dataclasses.dataclass(frozen=True)
class Result:
    """Accuracies in [0, 1] on the test split.

    Attributes:
      whole: kind -> accuracy of the trained network of 56 layers.
      without: kind -> accuracy without one block; nan for the first blocks of stages, which change
        the shape and stay.
      taken: numbers of blocks that are removed together.
      several: kind -> accuracy without so many random blocks.
      counts: numbers of bypassed blocks in the stack of 300 blocks.
      ranked: its accuracy with so many blocks bypassed, those first without which the loss moves
        least.
      random: the same, in random order.
      plain_ranked: `ranked` of a plain stack of as many blocks, which has no branches to drop and
        is trained without stochastic depth.
    """

    whole: dict[str, float]
    without: dict[str, Float[np.ndarray, " blocks"]]
    taken: Int[np.ndarray, " taken"]
    several: dict[str, Float[np.ndarray, "taken draws"]]
    counts: Int[np.ndarray, " counts"]
    ranked: Float[np.ndarray, " counts"]
    random: Float[np.ndarray, "draws counts"]
    plain_ranked: Float[np.ndarray, " counts"]


@seed_by_seed
def run(settings: Settings, say: Say) -> Result:
    """Trains the networks and stacks if necessary, and measures them without blocks.

    Args:
      settings: all but `image`, `weights` and `model` are used.
      say: receives lines of progress.
    """
    whole, without, several = {}, {}, {}
    for kind in KINDS:
        network = Trained(settings, kind, DEEP, say)
        whole[kind], without[kind], several[kind] = lesions(settings, network)
        mean = np.nanmean(without[kind])
        say(
            f"  {kind}, {DEEP} layers: top-1 {100 * whole[kind]:.1f}%, without one block "
            f"{100 * mean:.1f}% on average"
        )
    counts, ranked, random = thought_experiment(settings, "preactivation", say)
    _, plain_ranked, _ = thought_experiment(settings, "plain", say)
    return Result(whole, without, np.array(TAKEN), several, counts, ranked, random, plain_ranked)


def lesions(
    settings: Settings, network: Trained
) -> tuple[float, Float[np.ndarray, " blocks"], Float[np.ndarray, "taken draws"]]:
    """Returns `whole`, `without` and `several` of one network, as in `Result`.

    Args:
      settings: uses `seed`.
      network: a trained network.
    """
    images, labels = examples(network.run, network.run.evaluation, 500, settings.seed)
    logits, variables = jax.jit(bypassed(network.model)), network.variables
    can_go = removable(network.model, images, variables)
    free, blocks = np.flatnonzero(can_go), len(can_go)

    def accuracy(gone: Any) -> float:
        kept = np.ones(blocks, bool)
        kept[gone] = False
        return float((np.asarray(logits(variables, images, kept)).argmax(-1) == labels).mean())

    without = np.full(blocks, np.nan)
    for block in free:
        without[block] = accuracy([block])
    rng = np.random.default_rng(settings.seed)
    several = np.array(
        [[accuracy(rng.choice(free, count, False)) for _ in range(DRAWS)] for count in TAKEN]
    )
    return accuracy([]), without, several


def thought_experiment(
    settings: Settings, kind: Kind, say: Say
) -> tuple[
    Int[np.ndarray, " counts"], Float[np.ndarray, " counts"], Float[np.ndarray, "draws counts"]
]:
    """Trains a stack of 300 blocks of two dense layers on digits, and bypasses its blocks.

    Blocks are ranked by how far the training loss moves without each.

    Args:
      settings: uses `seed` and `scale`.
      kind: 'plain' or 'preactivation', as in `stacks.Stack`.
      say: receives a line with the outcome.

    Returns:
      `counts`, `ranked` and `random`, as in `Result`.
    """
    stack = Stack(kind, 2 * BLOCKS, init="he")
    train, test = digits("train"), digits("test")
    params = _trained(stack, settings, *train)

    @jax.jit
    def losses(params: Any, shares: jax.Array, images: jax.Array, labels: jax.Array) -> jax.Array:
        values: jax.Array = lax.map(lambda one: stack.loss(params, images, labels, one), shares)
        return values

    @jax.jit
    def accuracies(
        params: Any, shares: jax.Array, images: jax.Array, labels: jax.Array
    ) -> jax.Array:

        def accuracy(one: jax.Array) -> jax.Array:
            return (stack(params, images, one).argmax(-1) == labels).mean()

        values: jax.Array = lax.map(accuracy, shares)
        return values

    few = train[0][:RANKED], train[1][:RANKED]
    moved = abs(
        np.asarray(losses(params, 1 - jnp.eye(BLOCKS), *few))
        - np.asarray(losses(params, jnp.ones((1, BLOCKS)), *few))
    )
    counts = np.arange(0, BLOCKS, EVERY)

    def by(order: np.ndarray) -> np.ndarray:
        """Returns the accuracy with the first `counts` blocks of `order` bypassed."""
        shares = np.ones((len(counts), BLOCKS), np.float32)
        for row, count in zip(shares, counts, strict=True):
            row[order[:count]] = 0
        return np.asarray(accuracies(params, shares, *test))

    rng = np.random.default_rng(settings.seed)
    ranked = by(np.argsort(moved, kind="stable"))
    random = np.array([by(rng.permutation(BLOCKS)) for _ in range(DRAWS)])
    whole, most = 100 * ranked[0], 100 * ranked[int(np.flatnonzero(counts == BYPASSED)[0])]
    say(f"  {kind}, {BLOCKS} blocks: top-1 {whole:.1f}%, with {BYPASSED} bypassed {most:.1f}%")
    return counts, ranked, random


def _trained(stack: Stack, settings: Settings, images: np.ndarray, labels: np.ndarray) -> Params:
    """Trains a stack and returns its parameters.

    Residual (pre-activation) blocks are trained with stochastic depth (Huang et al. 2016: rates
    grow linearly to 0.5). Their second layer starts at zero, as a last norm's scale does in Goyal
    et al. 2017. Plain stacks are trained without either.
    """
    params = stack.initialise(jax.random.key(settings.seed), images.shape[1])
    if stack.kind != "plain":
        params |= {"layers": params["layers"].at[1::2].set(0)}
    steps = max(round(STEPS * settings.scale), 50)
    schedule = optax.cosine_decay_schedule(RATE, steps)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    rates = jnp.linspace(0, DROPPED, BLOCKS)

    @jax.jit
    def step(
        params: Any, opt_state: Any, key: jax.Array, images: jax.Array, labels: jax.Array
    ) -> Any:
        rows_key, drop_key = jax.random.split(key)
        chosen = jax.random.randint(rows_key, (BATCH,), 0, len(images), jnp.int32)
        # A plain block has no branch to scale.
        kept = jax.random.bernoulli(drop_key, 1 - rates)
        shares = kept / (1 - rates) if stack.kind != "plain" else jnp.ones(BLOCKS)
        loss, gradients = jax.value_and_grad(stack.loss)(
            params, images[chosen], labels[chosen], shares
        )
        updates, opt_state = tx.update(gradients, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state, keys = tx.init(params), jax.random.key(settings.seed + 1)
    for number in range(steps):
        key = jax.random.fold_in(keys, number)
        params, opt_state, _ = step(params, opt_state, key, images, labels)
    return params


def draw(results: Sequence[Result]) -> Any:
    """Draws the accuracies by removed blocks; returns a matplotlib figure."""
    plt = figures.pyplot()
    figure, (one, several, many) = plt.subplots(1, 3, figsize=(16, 5.2), layout="constrained")
    for kind in KINDS:
        _draw_network(one, several, kind, results)
    _draw_stacks(many, results)
    one.set(
        title=f"{DEEP} layers: one block taken out",
        xlabel="block that is taken out (gaps: those that change the shape)",
    )
    several.set(
        title=f"{DEEP} layers: several taken out at random",
        xlabel=f"blocks taken out (mean, least and most of {DRAWS * len(results)} draws)",
    )
    many.set(title=f"stacks of {BLOCKS} blocks of dense layers", xlabel="blocks bypassed")
    for axes in (one, several, many):
        axes.set(ylabel="top-1, %", ylim=(0, 101))
        axes.grid(alpha=0.3)
        # Below the axes, since the curves reach both ends.
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=8)
    several.set_xticks(results[0].taken)
    figure.suptitle(
        "What is left of a trained network without some of its blocks" + over_seeds(results)
    )
    return figure


def _draw_network(one: Any, several: Any, kind: str, results: Sequence[Result]) -> None:
    """Draws a network without one block, and without several."""
    style = STYLES[kind]
    without = [100 * result.without[kind] for result in results]
    whole = 100 * np.median([result.whole[kind] for result in results])
    blocks = 1 + np.arange(len(without[0]))
    band(one, blocks, without, label=f"{kind}, without one block", markersize=4, **style)
    one.axhline(whole, color=style["color"], linewidth=0.8, label=f"{kind}, whole")
    values = 100 * np.concatenate([result.several[kind] for result in results], 1)
    mean = values.mean(1)
    bars = [mean - values.min(1), values.max(1) - mean]
    several.errorbar(results[0].taken, mean, bars, label=kind, capsize=3, markersize=5, **style)


def _draw_stacks(axes: Any, results: Sequence[Result]) -> None:
    """Draws the stacks of 300 blocks by the number of bypassed blocks."""
    means = [result.random.mean(0) for result in results]
    for accuracies, label, kind in (
        (
            [result.ranked for result in results],
            "pre-activation, least important first",
            "residual",
        ),
        (means, "pre-activation, at random", "preactivation"),
        ([result.plain_ranked for result in results], "plain, least important first", "plain"),
    ):
        style = {"label": label, "markevery": 3, "markersize": 4} | STYLES[kind]
        band(axes, results[0].counts, [100 * one for one in accuracies], **style)
    axes.axvline(BYPASSED, color="0.6", linewidth=0.8)


def rows(result: Result) -> list[dict[str, Any]]:
    """Returns one row for each accuracy."""
    table: list[dict[str, Any]] = []
    for kind in KINDS:
        table += [
            {"what": "one block", "kind": kind, "block": i + 1, "top1": value}
            for i, value in enumerate(result.without[kind])
            if value == value
        ]
        table += [
            {"what": "several blocks", "kind": kind, "removed": count, "draw": draw_, "top1": value}
            for count, values in zip(result.taken, result.several[kind], strict=True)
            for draw_, value in enumerate(values)
        ]
    for name, kind, values in (
        ("ranked", "residual", result.ranked),
        ("ranked", "plain", result.plain_ranked),
        ("random", "residual", result.random.mean(0)),
    ):
        table += [
            {"what": f"{BLOCKS} blocks, {name}", "kind": kind, "removed": n, "top1": v}
            for n, v in zip(result.counts, values, strict=True)
        ]
    return table


def claims(result: Result) -> list[Claim]:
    """Tests whether residual networks, and only those, keep their accuracy without blocks."""
    lost = {
        kind: 100 * (result.whole[kind] - float(np.nanmean(result.without[kind]))) for kind in KINDS
    }
    at = int(np.flatnonzero(result.counts == BYPASSED)[0])
    plain, residual = (100 * float(curve[0]) for curve in (result.plain_ranked, result.ranked))
    left = 100 * float(result.ranked[at])
    return [
        Claim(
            "A residual network loses little without one of its blocks, a plain one much more "
            f"({DEEP} layers)",
            "accuracy lost, mean over blocks, points",
            lost["plain"],
            lost["residual"],
            lost["residual"] < 5 and lost["residual"] < lost["plain"] / 3,
        ),
        Claim(
            f"A stack of {BLOCKS} residual blocks trains, one of {BLOCKS} plain blocks does not",
            "top-1, %",
            plain,
            residual,
            residual > 90 and plain < 20,
        ),
        Claim(
            f"Of the {BLOCKS} residual blocks {BYPASSED} can be bypassed",
            "top-1 without them, %",
            None,
            left,
            left > 0.9 * residual,
        ),
    ]


EXPERIMENT = Experiment(
    "blocks taken out of trained networks, and 250 of 300 bypassed", run, draw, rows, claims
)
