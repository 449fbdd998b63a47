"""Stacks of dense layers trained on digits with several rates and seeds at once."""

import dataclasses
import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from flaxres.lab.report import Say, Settings
from flaxres.lab.stacks import Params, Stack, digits

RATES = (0.01, 0.03, 0.1, 0.3)
STEPS, BATCH, MOMENTUM = 300, 128, 0.9


@dataclasses.dataclass(frozen=True)
class Score:
    """A trained stack.

    Attributes:
      rate: the learning rate, whose mean training loss over all seeds is the lowest.
      loss: cross-entropy on the whole training split, in nats.
      top1: accuracy on the test split, in [0, 1].
    """

    rate: float
    loss: float
    top1: float


Scores = dict[tuple[str, int], Score]
"""Scores by (name of the kind, depth)."""


def tuned(
    stack: Stack, seeds: Sequence[int], scale: float = 1.0, rates: Sequence[float] = RATES
) -> list[Score]:
    """Trains a stack for 300 steps by SGD with momentum and a cosine schedule, with each rate.

    Gradients are clipped to a global norm of 1. Seeds and rates are two mapped axes of one program.

    Args:
      stack: the stack. Its norms, if it has any, use the whole test split as the batch.
      seeds: of initialisation and order.
      scale: of the steps.
      rates: learning rates to choose from.

    Returns:
      One score a seed.

    Examples:
      >>> scores = tuned(Stack("residual", 4, norm=True, init="he"), [0, 1], scale=0.2)
      >>> [score.top1 > 0.9 for score in scores]
      [True, True]
    """
    images, labels = map(jnp.asarray, digits("train"))
    test_images, test_labels = map(jnp.asarray, digits("test"))
    steps = max(round(STEPS * scale), 1)

    def trained(seed: jax.Array, rate: jax.Array) -> tuple[jax.Array, jax.Array]:
        key = jax.random.key(seed)
        schedule = optax.cosine_decay_schedule(1.0, steps)
        tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(schedule, MOMENTUM))

        def step(carry: tuple[Params, Any], number: jax.Array) -> tuple[tuple[Params, Any], None]:
            params, opt_state = carry
            shape = (BATCH,)
            chosen = jax.random.randint(jax.random.fold_in(key, number), shape, 0, len(images))
            gradients = jax.grad(stack.loss)(params, images[chosen], labels[chosen])
            updates, opt_state = tx.update(gradients, opt_state)
            updates = jax.tree.map(lambda update: rate * update, updates)
            moved: Params = optax.apply_updates(params, updates)
            return (moved, opt_state), None

        params = stack.initialise(key, images.shape[1])
        (params, _), _ = lax.scan(step, (params, tx.init(params)), jnp.arange(steps))
        right = stack(params, test_images).argmax(-1) == test_labels
        return stack.loss(params, images, labels), right.mean()

    by_seed_and_rate = jax.vmap(jax.vmap(trained, (None, 0)), (0, None))
    losses, top1 = map(
        np.asarray, jax.jit(by_seed_and_rate)(jnp.array(seeds), jnp.array(rates, jnp.float32))
    )
    best = int(np.argmin(np.nan_to_num(losses, nan=np.inf).mean(0)))
    return [
        Score(rates[best], float(loss), float(right))
        for loss, right in zip(losses[:, best], top1[:, best], strict=True)
    ]


def tuned_all(
    stacks: Mapping[tuple[str, int], Stack], settings: Settings, say: Say
) -> list[Scores]:
    """Trains stacks by `tuned`, and says the median accuracies of each kind.

    Args:
      stacks: (name of the kind, depth) -> stack; those of a kind are neighbours.
      settings: uses `seed`, `seeds` and `scale`.
      say: receives a line for each kind.

    Returns:
      The scores of all stacks, one dictionary a seed.
    """
    scores: list[Scores] = [{} for _ in settings.all_seeds]
    for name, places in itertools.groupby(stacks, key=operator.itemgetter(0)):
        medians = []
        for place in places:
            found = tuned(stacks[place], settings.all_seeds, settings.scale)
            for of_seed, score in zip(scores, found, strict=True):
                of_seed[place] = score
            top1 = 100 * np.median([score.top1 for score in found])
            medians.append(f"{place[1]} layers {top1:.1f}%")
        say(f"  {name}, top-1: {', '.join(medians)}")
    return scores


def table(scores: Scores) -> list[dict[str, Any]]:
    """Returns one row for each stack."""
    return [
        {"kind": kind, "depth": depth} | dataclasses.asdict(score)
        for (kind, depth), score in scores.items()
    ]
