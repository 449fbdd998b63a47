"""Blocks taken out of trained networks (Veit et al. 2016), and the article's thought experiment: 250 of 300 blocks bypassed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from flaxres import figures
from flaxres.lab.networks import DEEP, KINDS, Trained, bypassed, examples, removable
from flaxres.lab.report import STYLES, Claim, Experiment, Say, Settings
from flaxres.lab.stacks import Stack, digits

BLOCKS, BYPASSED, EVERY = 300, 250, 10
DRAWS, STEPS, BATCH, RATE, DROPPED = 5, 600, 128, 1e-3, 0.5
RANKED = 500
TAKEN = (1, 2, 4, 8, 12, 16, 20)


@dataclasses.dataclass(frozen=True)
class Result:
    """Accuracies in [0, 1] on the test split.

    Attributes:
      whole: kind -> accuracy of the network of 56 layers as it was trained.
      without: kind -> (blocks,), with one block taken out; nan for the first blocks of stages, which change the shape and stay.
      several: kind -> (numbers of blocks, draws), with so many random blocks taken out; `taken` has the numbers.
      counts, ranked, random: of the stack of 300 blocks with so many bypassed, those first without which the loss moves least, (counts,), and in
        random order, (draws, counts).
      plain_ranked: `ranked` of a plain stack of as many blocks, which has no branches to drop and is trained without stochastic depth.
    """

    whole: dict[str, float]
    without: dict[str, np.ndarray]
    taken: np.ndarray
    several: dict[str, np.ndarray]
    counts: np.ndarray
    ranked: np.ndarray
    random: np.ndarray
    plain_ranked: np.ndarray


def run(settings: Settings, say: Say) -> Result:
    whole, without, several = {}, {}, {}
    for kind in KINDS:
        whole[kind], without[kind], several[kind] = lesions(
            settings, Trained(settings, kind, DEEP, say)
        )
        say(
            f"  {kind}, {DEEP} layers: top-1 {100 * whole[kind]:.1f}%, without one block {100 * np.nanmean(without[kind]):.1f}% on average"
        )
    counts, ranked, random = thought_experiment(settings, "preactivation", say)
    _, plain_ranked, _ = thought_experiment(settings, "plain", say)
    return Result(whole, without, np.array(TAKEN), several, counts, ranked, random, plain_ranked)


def lesions(settings: Settings, network: Trained) -> tuple[float, np.ndarray, np.ndarray]:
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
    settings: Settings, kind: Any, say: Say
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A stack of 300 blocks of two dense layers on digits. Residual (pre-activation) blocks are trained with stochastic depth (Huang et al. 2016:
    rates grow linearly to 0.5), and their second layer starts at zero, as a last norm's scale does in Goyal et al. 2017; plain ones without either.
    Then blocks are ranked, each by how far the training loss moves without it, and bypassed.
    """
    stack = Stack(kind, 2 * BLOCKS, init="he")
    train, test = digits("train"), digits("test")
    params = stack.born(jax.random.key(settings.seed), train[0].shape[1])
    if kind != "plain":
        layers = params["layers"].at[1::2].set(0)
        params |= {"layers": layers}
    steps = max(round(STEPS * settings.scale), 50)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(RATE, steps))
    )
    rates = jnp.linspace(0, DROPPED, BLOCKS)

    @jax.jit
    def step(
        params: Any, opt_state: Any, number: jax.Array, images: jax.Array, labels: jax.Array
    ) -> Any:
        key = jax.random.fold_in(jax.random.key(settings.seed + 1), number)
        rows_key, drop_key = jax.random.split(key)
        chosen = jax.random.randint(rows_key, (BATCH,), 0, len(images))
        # A plain block has no branch to scale.
        kept = jax.random.bernoulli(drop_key, 1 - rates)
        shares = kept / (1 - rates) if kind != "plain" else jnp.ones(BLOCKS)
        loss, gradients = jax.value_and_grad(stack.loss)(
            params, images[chosen], labels[chosen], shares
        )
        updates, opt_state = tx.update(gradients, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state = tx.init(params)
    for number in range(steps):
        params, opt_state, _ = step(params, opt_state, number, *train)

    @jax.jit
    def losses(params: Any, shares: jax.Array, images: jax.Array, labels: jax.Array) -> jax.Array:
        return lax.map(lambda one: stack.loss(params, images, labels, one), shares)

    @jax.jit
    def accuracies(
        params: Any, shares: jax.Array, images: jax.Array, labels: jax.Array
    ) -> jax.Array:
        return lax.map(lambda one: (stack(params, images, one).argmax(-1) == labels).mean(), shares)

    few = train[0][:RANKED], train[1][:RANKED]
    moved = abs(
        np.asarray(losses(params, 1 - jnp.eye(BLOCKS), *few))
        - np.asarray(losses(params, jnp.ones((1, BLOCKS)), *few))
    )
    counts = np.arange(0, BLOCKS, EVERY)

    def by(order: np.ndarray) -> np.ndarray:
        """Accuracy with the first blocks of `order` bypassed, by how many."""
        shares = np.ones((len(counts), BLOCKS), np.float32)
        for row, count in zip(shares, counts, strict=True):
            row[order[:count]] = 0
        return np.asarray(accuracies(params, shares, *test))

    rng = np.random.default_rng(settings.seed)
    ranked = by(np.argsort(moved, kind="stable"))
    random = np.array([by(rng.permutation(BLOCKS)) for _ in range(DRAWS)])
    at = int(np.flatnonzero(counts == BYPASSED)[0])
    say(
        f"  {kind}, {BLOCKS} blocks: top-1 {100 * ranked[0]:.1f}%, with {BYPASSED} bypassed {100 * ranked[at]:.1f}%"
    )
    return counts, ranked, random


def draw(result: Result) -> Any:
    plt = figures.pyplot()
    figure, (one, several, many) = plt.subplots(1, 3, figsize=(16, 5.2), layout="constrained")
    for kind in KINDS:
        style = STYLES[kind]
        one.plot(
            1 + np.arange(len(result.without[kind])),
            100 * result.without[kind],
            label=f"{kind}, without one block",
            markersize=4,
            **style,
        )
        one.axhline(
            100 * result.whole[kind], color=style["color"], linewidth=0.8, label=f"{kind}, whole"
        )
        values = 100 * result.several[kind]
        several.errorbar(
            result.taken,
            values.mean(1),
            [values.mean(1) - values.min(1), values.max(1) - values.mean(1)],
            label=kind,
            capsize=3,
            markersize=5,
            **style,
        )
    one.set(
        title=f"{DEEP} layers: one block taken out",
        xlabel="block that is taken out (gaps: those that change the shape)",
    )
    several.set(
        title=f"{DEEP} layers: several taken out at random",
        xlabel="blocks taken out (mean, least and most of 5 draws)",
    )
    many.plot(
        result.counts,
        100 * result.ranked,
        label="pre-activation, least important first",
        markevery=3,
        markersize=4,
        **STYLES["residual"],
    )
    many.plot(
        result.counts,
        100 * result.random.mean(0),
        label="pre-activation, at random",
        markevery=3,
        markersize=4,
        **STYLES["preactivation"],
    )
    many.plot(
        result.counts,
        100 * result.plain_ranked,
        label="plain, least important first",
        markevery=3,
        markersize=4,
        **STYLES["plain"],
    )
    many.axvline(BYPASSED, color="0.6", linewidth=0.8)
    many.set(title=f"stacks of {BLOCKS} blocks of dense layers", xlabel="blocks bypassed")
    for axes in (one, several, many):
        axes.set(ylabel="top-1, %", ylim=(0, 101))
        axes.grid(alpha=0.3)
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=8
        )  # below the curves, which lie at both ends
    several.set_xticks(result.taken)
    figure.suptitle("What is left of a trained network without some of its blocks")
    return figure


def rows(result: Result) -> list[dict[str, Any]]:
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
    lost = {
        kind: 100 * (result.whole[kind] - float(np.nanmean(result.without[kind]))) for kind in KINDS
    }
    at = int(np.flatnonzero(result.counts == BYPASSED)[0])
    plain, residual = (100 * float(curve[0]) for curve in (result.plain_ranked, result.ranked))
    left = 100 * float(result.ranked[at])
    return [
        Claim(
            f"A residual network loses little without one of its blocks, a plain one much more ({DEEP} layers)",
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
