"""Norms of each layer's gradient in stacks of 10 to 1,000 layers.

They are measured at initialisation and during training, and show where gradients vanish, explode
or are preserved.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from flaxres import figures
from flaxres.lab.claims import Claim
from flaxres.lab.drawing import STYLES, band, over_seeds
from flaxres.lab.report import Experiment, Say, Settings
from flaxres.lab.stacks import KINDS, Init, Kind, Stack, digits

DEPTHS = (10, 30, 100, 300, 1000)
SHOWN = 100
# (initialisation, with norm) -> its name.
CASES: Mapping[tuple[Init, bool], str] = {
    ("glorot", False): "Glorot's initialisation, no norm",
    ("he", False): "He's initialisation, no norm",
    ("he", True): "He's initialisation, batch norm",
}
BATCH, TRAINED, STEPS, SNAPSHOTS, RATE = 32, 50, 200, (0, 20), 0.02
TINY = np.finfo(np.float64).tiny
MARKERS = {"markevery": 0.11, "markersize": 5}


@dataclasses.dataclass(frozen=True)
class Norms:
    """Norms of the gradients of the loss, the first layer first.

    Attributes:
      weights: by the weights of each hidden layer.
      arriving: by the output of each block of two layers (in a dense stack, of each layer): the
        article's dJ/dx.
    """

    weights: Float[np.ndarray, " layers"]
    arriving: Float[np.ndarray, " joints"]

    @property
    def ratio(self) -> float:
        """Norm at the first block, divided by that at the last one."""
        return float(max(self.arriving[0], TINY) / max(self.arriving[-1], TINY))


@dataclasses.dataclass(frozen=True)
class Result:
    """Gradient norms at initialisation and during training.

    Attributes:
      at_birth: (case, kind, depth) -> norms at initialisation.
      trained: (kind, steps) -> norms after so many steps, in stacks of 50 layers with Glorot's
        initialisation and no norm.
      losses: kind -> losses of that training, in nats.
    """

    at_birth: dict[tuple[str, str, int], Norms]
    trained: dict[tuple[str, int], Norms]
    losses: dict[str, Float[np.ndarray, " steps"]]


def run(settings: Settings, say: Say) -> list[Result]:
    """Measures the stacks in float64, whose range holds the gradients of a thousand layers.

    Args:
      settings: uses `seed`, `seeds` and `scale`.
      say: receives lines of progress.

    Returns:
      One result a seed. All seeds are computed at once.
    """
    images, labels = digits("train")
    results = [Result({}, {}, {}) for _ in settings.all_seeds]
    with jax.enable_x64(True):
        x, y = jnp.asarray(images[:BATCH], jnp.float64), jnp.asarray(labels[:BATCH])
        for (init, norm), case in CASES.items():
            for kind in KINDS:
                for depth in DEPTHS:
                    measured = _at_birth(Stack(kind, depth, norm, init), settings.all_seeds, x, y)
                    for result, norms in zip(results, measured, strict=True):
                        result.at_birth[case, kind, depth] = norms
            middle = {
                kind: np.median([result.at_birth[case, kind, SHOWN].ratio for result in results])
                for kind in KINDS
            }
            ratios = ", ".join(f"{kind} {ratio:.1e}" for kind, ratio in middle.items())
            say(f"  {case}: gradient at the first of {SHOWN} layers over the last: {ratios}")
    steps = max(round(STEPS * settings.scale), SNAPSHOTS[-1])
    for kind in KINDS:
        trained = training(Stack(kind, TRAINED), settings.all_seeds, images, labels, steps)
        for result, (norms_by_step, losses) in zip(results, trained, strict=True):
            result.trained.update({(kind, step): one for step, one in norms_by_step.items()})
            result.losses[kind] = losses
        first, last = (
            np.median([result.losses[kind][part].mean() for result in results])
            for part in (slice(1), slice(-10, None))
        )
        say(f"  {kind}, {TRAINED} layers: loss {first:.2f} -> {last:.2f} in {steps} steps")
    return results


def _keys(seeds: Sequence[int]) -> jax.Array:
    return jax.vmap(jax.random.key)(jnp.array(seeds))


def _at_birth(stack: Stack, seeds: Sequence[int], x: Any, y: Any) -> list[Norms]:
    """Returns the norms at initialisation, one a seed."""

    def measured(key: jax.Array) -> Any:
        return stack.gradient_norms(stack.initialise(key, x.shape[1], x.dtype), x, y)

    return _by_seed(jax.jit(jax.vmap(measured))(_keys(seeds)))


def _by_seed(norms: Any) -> list[Norms]:
    return [Norms(*both) for both in zip(*map(np.asarray, norms), strict=True)]


def training(
    stack: Stack,
    seeds: Sequence[int],
    images: Float[np.ndarray, "n pixels"],
    labels: Int[np.ndarray, " n"],
    steps: int,
) -> list[tuple[dict[int, Norms], Float[np.ndarray, " steps"]]]:
    """Trains a stack by SGD with momentum, its gradients clipped to a global norm of 1.

    Args:
      stack: the stack.
      seeds: of the initialisation and the order; all are trained at once.
      images, labels: the training split; each step draws 128 of them.
      steps: number of steps.

    Returns:
      For each seed the gradient norms before the steps `SNAPSHOTS` and after the last one, by the
      number of steps; and the losses of all steps, in nats.

    Examples:
      >>> images, labels = digits("train")
      >>> (norms, losses), _ = training(Stack("residual", 4), [0, 1], images, labels, steps=2)
      >>> list(norms), losses.shape
      ([0, 2], (2,))
    """
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(RATE, 0.9))
    params = jax.vmap(lambda key: stack.initialise(key, images.shape[1]))(_keys(seeds))
    opt_state = jax.vmap(tx.init)(params)

    @jax.jit
    @jax.vmap
    def step(params: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> Any:
        loss, gradients = jax.value_and_grad(stack.loss)(params, x, y)
        updates, opt_state = tx.update(gradients, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    x, y = jnp.asarray(images[:BATCH]), jnp.asarray(labels[:BATCH])
    measure = jax.jit(jax.vmap(lambda params: stack.gradient_norms(params, x, y)))
    rngs = [np.random.default_rng(seed) for seed in seeds]
    norms, losses = {}, []
    for number in range(steps):
        if number in SNAPSHOTS:
            norms[number] = _by_seed(measure(params))
        chosen = np.stack([rng.integers(0, len(images), 128) for rng in rngs])
        params, opt_state, loss = step(params, opt_state, images[chosen], labels[chosen])
        losses.append(np.asarray(loss))
    norms[steps] = _by_seed(measure(params))
    return [
        ({step: of_seeds[place] for step, of_seeds in norms.items()}, curve)
        for place, curve in enumerate(np.transpose(losses))
    ]


def draw(results: Sequence[Result]) -> Any:
    """Draws the norms at initialisation and during training; returns a matplotlib figure."""
    plt = figures.pyplot()
    figure, axes = plt.subplots(2, 4, figsize=(19, 8.5), layout="constrained")
    for (layers, ratios), case in zip(axes.T, CASES.values(), strict=False):
        _draw_case(layers, ratios, case, results)
    losses, later = axes[:, 3]
    _draw_training(losses, later, results)
    for one in axes.flat:
        one.grid(alpha=0.3)
        if one is not losses:
            one.axhline(1, color="0.6", linewidth=0.8)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(KINDS))
    figure.suptitle(
        "Gradient norm at each layer: stacks of dense layers on digits, "
        "at initialisation and during training" + over_seeds(results)
    )
    return figure


def _draw_case(layers: Any, ratios: Any, case: str, results: Sequence[Result]) -> None:
    """Draws one initialisation: norms by layer, and the first layer's by depth."""
    for kind in KINDS:
        _plot_norms(layers, kind, [result.at_birth[case, kind, SHOWN] for result in results], SHOWN)
        points = [
            [result.at_birth[case, kind, depth].ratio for depth in DEPTHS] for result in results
        ]
        band(ratios, DEPTHS, points, label=kind, markersize=5, **STYLES[kind])
    ylabel = "|dJ/dx|, of the last layer's"
    layers.set(title=f"{case}: {SHOWN} layers", xlabel="layer", ylabel=ylabel, yscale="log")
    ylabel, log = "|dJ/dx| at the first layer over the last", {"xscale": "log", "yscale": "log"}
    ratios.set(title="by depth", xlabel="layers", ylabel=ylabel, **log)


def _draw_training(losses: Any, later: Any, results: Sequence[Result]) -> None:
    """Draws the losses of the trained stacks, and their norms after training."""
    for kind in KINDS:
        steps = max(step for name, step in results[0].trained if name == kind)
        values = [np.maximum(result.losses[kind], 1e-3) for result in results]
        band(losses, np.arange(steps), values, label=kind, **MARKERS, **STYLES[kind])
        _plot_norms(later, kind, [result.trained[kind, steps] for result in results], TRAINED)
    title = f"Training {TRAINED} layers (Glorot's, no norm)"
    losses.set(title=title, xlabel="step", ylabel="loss, nats", yscale="log")
    title, ylabel = "gradients after training", "|dJ/dx|, of the last layer's"
    later.set(title=title, xlabel="layer", ylabel=ylabel, yscale="log")


def _plot_norms(axes: Any, kind: Kind, norms: Sequence[Norms], depth: int) -> None:
    """Plots arriving gradients by layer, relative to the last one's."""
    values = [np.maximum(one.arriving, TINY) for one in norms]
    layers = np.linspace(1, depth, len(values[0]))
    relative = [one / one[-1] for one in values]
    band(axes, layers, relative, label=kind, **MARKERS, **STYLES[kind])


def rows(result: Result) -> list[dict[str, Any]]:
    """Returns one row for each stack and layer."""
    first = next(iter(CASES.values()))
    initial = [
        row
        for (case, kind, _), norms in result.at_birth.items()
        for row in _rows(case, kind, 0, norms)
    ]
    trained = [
        row
        for (kind, step), norms in result.trained.items()
        for row in _rows(f"training, {first}", kind, step, norms)
    ]
    return initial + trained


def _rows(case: str, kind: str, step: int, norms: Norms) -> list[dict[str, Any]]:
    depth = len(norms.weights)
    stride = depth // len(norms.arriving)
    return [
        {
            "case": case,
            "kind": kind,
            "depth": depth,
            "step": step,
            "layer": layer,
            "by_weights": norms.weights[layer - 1],
            "by_output": norms.arriving[layer // stride - 1] if layer % stride == 0 else "",
        }
        for layer in range(1, depth + 1)
    ]


def claims(result: Result) -> list[Claim]:
    """Tests whether gradients vanish or explode by initialisation, norm and shortcuts."""
    glorot, he, normed = CASES.values()
    vanishing = [_vanishing(result, glorot, depth) for depth in (30, SHOWN)]
    plain, residual = (
        float(result.at_birth[glorot, kind, SHOWN].weights[0]) for kind in ("plain", "residual")
    )
    nothing_to_learn = Claim(
        f"The first layer of {SHOWN} then has nothing to learn from in a plain net",
        "gradient norm of its weights",
        plain,
        residual,
        plain < 1e-6 < 1e-2 < residual,
        powers=True,
    )
    plain, residual = (float(result.losses[kind][-10:].mean()) for kind in ("plain", "residual"))
    untrainable = Claim(
        f"A plain net of {TRAINED} layers does not train, a residual one does",
        "loss at the end, nats",
        plain,
        residual,
        residual < plain / 2,
    )
    return [*vanishing, nothing_to_learn, _he(result, he), _normed(result, normed), untrainable]


def _vanishing(result: Result, case: str, depth: int) -> Claim:
    plain, residual = (result.at_birth[case, kind, depth].ratio for kind in ("plain", "residual"))
    return Claim(
        "Gradients vanish with depth in a plain net, and don't with skip connections "
        f"({depth} layers, Glorot's initialisation, no norm)",
        "|dJ/dx| at the first block over the last",
        plain,
        residual,
        plain < 10.0 ** (-depth / 10) and residual > 1,
        powers=True,
    )


def _he(result: Result, case: str) -> Claim:
    plain, residual = (result.at_birth[case, kind, SHOWN].ratio for kind in ("plain", "residual"))
    return Claim(
        "He's initialisation keeps a plain net's gradients within a factor of 1,000 "
        f"({SHOWN} layers); sums without a norm explode with it",
        "|dJ/dx| at the first block over the last",
        plain,
        residual,
        1e-3 < plain < 1e3 < residual,
        powers=True,
    )


def _normed(result: Result, case: str) -> Claim:
    plain, residual = (
        result.at_birth[case, kind, SHOWN].ratio for kind in ("plain", "preactivation")
    )
    return Claim(
        f"With batch norm and {SHOWN} layers a plain net's gradients explode towards the first; "
        "a pre-activation net's don't",
        "|dJ/dx| at the first block over the last",
        plain,
        residual,
        plain > 1e6 and 0.1 < residual < 100,
        powers=True,
    )


EXPERIMENT = Experiment("gradients of 10 to 1,000 layers", run, draw, rows, claims)
