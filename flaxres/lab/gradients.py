"""Norms of each layer's gradient in stacks of 10 to 1,000 layers.

They are measured at initialisation and during training, and show where gradients vanish, explode
or are preserved.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from flaxres import figures
from flaxres.lab.report import STYLES, Claim, Experiment, Say, Settings
from flaxres.lab.stacks import KINDS, Init, Kind, Params, Stack, digits

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


def run(settings: Settings, say: Say) -> Result:
    """Measures the stacks in float64, whose range holds the gradients of a thousand layers.

    Args:
      settings: uses `seed` and `scale`.
      say: receives lines of progress.
    """
    images, labels = digits("train")
    key = jax.random.key(settings.seed)
    initial: dict[tuple[str, str, int], Norms] = {}
    with jax.enable_x64(True):
        x, y = jnp.asarray(images[:BATCH], jnp.float64), jnp.asarray(labels[:BATCH])
        for (init, norm), case in CASES.items():
            for kind in KINDS:
                for depth in DEPTHS:
                    stack = Stack(kind, depth, norm, init)
                    params = stack.initialise(key, x.shape[1], jnp.float64)
                    initial[case, kind, depth] = _norms(stack, params, x, y)
            ratios = ", ".join(f"{kind} {initial[case, kind, SHOWN].ratio:.1e}" for kind in KINDS)
            say(f"  {case}: gradient at the first of {SHOWN} layers over the last: {ratios}")
    trained: dict[tuple[str, int], Norms] = {}
    losses: dict[str, np.ndarray] = {}
    for kind in KINDS:
        stack, steps = Stack(kind, TRAINED), max(round(STEPS * settings.scale), SNAPSHOTS[-1])
        norms, losses[kind] = training(stack, key, images, labels, steps)
        trained |= {(kind, step): measured for step, measured in norms.items()}
        first, last = losses[kind][0], losses[kind][-10:].mean()
        say(f"  {kind}, {TRAINED} layers: loss {first:.2f} -> {last:.2f} in {steps} steps")
    return Result(initial, trained, losses)


def _norms(stack: Stack, params: Params, x: Any, y: Any) -> Norms:
    return Norms(*map(np.asarray, jax.jit(stack.gradient_norms)(params, x, y)))


def training(
    stack: Stack,
    key: jax.Array,
    images: Float[np.ndarray, "n pixels"],
    labels: Int[np.ndarray, " n"],
    steps: int,
) -> tuple[dict[int, Norms], Float[np.ndarray, " steps"]]:
    """Trains a stack by SGD with momentum, its gradients clipped to a global norm of 1.

    Args:
      stack: the stack.
      key: key of its initialisation.
      images, labels: the training split; each step draws 128 of them.
      steps: number of steps.

    Returns:
      Gradient norms before the steps `SNAPSHOTS` and after the last one, by the number of steps;
      and the losses of all steps, in nats.

    Examples:
      >>> images, labels = digits("train")
      >>> stack = Stack("residual", 4)
      >>> norms, losses = training(stack, jax.random.key(0), images, labels, steps=2)
      >>> list(norms), losses.shape
      ([0, 2], (2,))
    """
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(RATE, 0.9))
    params = stack.initialise(key, images.shape[1])
    opt_state = tx.init(params)

    @jax.jit
    def step(params: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> Any:
        loss, gradients = jax.value_and_grad(stack.loss)(params, x, y)
        updates, opt_state = tx.update(gradients, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    rng, norms, losses = np.random.default_rng(0), {}, []
    for number in range(steps):
        if number in SNAPSHOTS:
            norms[number] = _norms(stack, params, images[:BATCH], labels[:BATCH])
        chosen = rng.integers(0, len(images), 128)
        params, opt_state, loss = step(params, opt_state, images[chosen], labels[chosen])
        losses.append(float(loss))
    norms[steps] = _norms(stack, params, images[:BATCH], labels[:BATCH])
    return norms, np.array(losses)


def draw(result: Result) -> Any:
    """Draws the norms at initialisation and during training; returns a matplotlib figure."""
    plt = figures.pyplot()
    figure, axes = plt.subplots(2, 4, figsize=(19, 8.5), layout="constrained")
    for (layers, ratios), case in zip(axes.T, CASES.values(), strict=False):
        _draw_case(layers, ratios, case, result)
    losses, later = axes[:, 3]
    _draw_training(losses, later, result)
    for one in axes.flat:
        one.grid(alpha=0.3)
        if one is not losses:
            one.axhline(1, color="0.6", linewidth=0.8)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(KINDS))
    figure.suptitle(
        "Gradient norm at each layer: stacks of dense layers on digits, "
        "at initialisation and during training"
    )
    return figure


def _draw_case(layers: Any, ratios: Any, case: str, result: Result) -> None:
    """Draws one initialisation: norms by layer, and the first layer's by depth."""
    for kind in KINDS:
        _plot_norms(layers, kind, result.at_birth[case, kind, SHOWN], SHOWN)
        points = [result.at_birth[case, kind, depth].ratio for depth in DEPTHS]
        ratios.plot(DEPTHS, points, label=kind, markersize=5, **STYLES[kind])
    ylabel = "|dJ/dx|, of the last layer's"
    layers.set(title=f"{case}: {SHOWN} layers", xlabel="layer", ylabel=ylabel, yscale="log")
    ylabel, log = "|dJ/dx| at the first layer over the last", {"xscale": "log", "yscale": "log"}
    ratios.set(title="by depth", xlabel="layers", ylabel=ylabel, **log)


def _draw_training(losses: Any, later: Any, result: Result) -> None:
    """Draws the losses of the trained stacks, and their norms after training."""
    for kind in KINDS:
        steps = max(step for name, step in result.trained if name == kind)
        values = np.maximum(result.losses[kind], 1e-3)
        losses.plot(values, label=kind, **MARKERS, **STYLES[kind])
        _plot_norms(later, kind, result.trained[kind, steps], TRAINED)
    title = f"Training {TRAINED} layers (Glorot's, no norm)"
    losses.set(title=title, xlabel="step", ylabel="loss, nats", yscale="log")
    title, ylabel = "gradients after training", "|dJ/dx|, of the last layer's"
    later.set(title=title, xlabel="layer", ylabel=ylabel, yscale="log")


def _plot_norms(axes: Any, kind: Kind, norms: Norms, depth: int) -> None:
    """Plots arriving gradients by layer, relative to the last one's."""
    values = np.maximum(norms.arriving, TINY)
    layers = np.linspace(1, depth, len(values))
    axes.plot(layers, values / values[-1], label=kind, **MARKERS, **STYLES[kind])


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
    )


EXPERIMENT = Experiment("gradients of 10 to 1,000 layers", run, draw, rows, claims)
