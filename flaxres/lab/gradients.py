"""The norm of each layer's gradient, from 10 to 1,000 layers, at initialisation and while training: what vanishes, what explodes, what stays."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxres import figures
from flaxres.lab.report import STYLES, Claim, Experiment, Say, Settings
from flaxres.lab.stacks import KINDS, Init, Params, Stack, digits

DEPTHS = (10, 30, 100, 300, 1000)
SHOWN = 100
# How layers are born and whether they are normalised -> its words.
CASES: Mapping[tuple[Init, bool], str] = {
    ("glorot", False): "Glorot's initialisation, no norm",
    ("he", False): "He's initialisation, no norm",
    ("he", True): "He's initialisation, batch norm",
}
BATCH, TRAINED, STEPS, SNAPSHOTS, RATE = 32, 50, 200, (0, 20), 0.02
TINY = np.finfo(np.float64).tiny


@dataclasses.dataclass(frozen=True)
class Norms:
    """Norms of the gradients of the loss: by the weights of each hidden layer (depth,), and `arriving`, by what each block of two layers (of a dense
    stack, each layer) gives: the article's dJ/dx. The first layer comes first.
    """

    weights: np.ndarray
    arriving: np.ndarray

    @property
    def ratio(self) -> float:
        """What arrives at the first block, over what arrives at the last one."""
        return float(max(self.arriving[0], TINY) / max(self.arriving[-1], TINY))


@dataclasses.dataclass(frozen=True)
class Result:
    """At initialisation, by (case, kind, depth); while training stacks of 50 layers (Glorot's initialisation, no norm), by (kind, steps); and the
    losses of that training, kind -> (steps,).
    """

    at_birth: dict[tuple[str, str, int], Norms]
    trained: dict[tuple[str, int], Norms]
    losses: dict[str, np.ndarray]


def run(settings: Settings, say: Say) -> Result:
    """In float64, whose range holds what a thousand layers do to a gradient."""
    images, labels = digits("train")
    key = jax.random.key(settings.seed)
    with jax.enable_x64(True):
        x, y = jnp.asarray(images[:BATCH], jnp.float64), jnp.asarray(labels[:BATCH])
        at_birth: dict[tuple[str, str, int], Norms] = {}
        for (init, norm), words in CASES.items():
            for kind in KINDS:
                for depth in DEPTHS:
                    stack = Stack(kind, depth, norm, init)
                    at_birth[words, kind, depth] = measured(
                        stack, stack.born(key, x.shape[1], jnp.float64), x, y
                    )
            found = ", ".join(f"{kind} {at_birth[words, kind, SHOWN].ratio:.1e}" for kind in KINDS)
            say(
                f"  {words}: what arrives at the first of {SHOWN} layers, over what arrives at the last: {found}"
            )
    trained: dict[tuple[str, int], Norms] = {}
    losses: dict[str, np.ndarray] = {}
    for kind in KINDS:
        stack, steps = Stack(kind, TRAINED), max(round(STEPS * settings.scale), SNAPSHOTS[-1])
        norms, losses[kind] = training(stack, key, images, labels, steps)
        trained |= {(kind, step): found for step, found in norms.items()}
        say(
            f"  {kind}, {TRAINED} layers: loss {losses[kind][0]:.2f} -> {losses[kind][-10:].mean():.2f} in {steps} steps"
        )
    return Result(at_birth, trained, losses)


def measured(stack: Stack, params: Params, x: Any, y: Any) -> Norms:
    return Norms(*map(np.asarray, jax.jit(stack.gradient_norms)(params, x, y)))


def training(
    stack: Stack, key: jax.Array, images: np.ndarray, labels: np.ndarray, steps: int
) -> tuple[dict[int, Norms], np.ndarray]:
    """Norms at some steps of SGD with momentum, its gradients clipped to 1, and the losses of all."""
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(RATE, 0.9))
    params = stack.born(key, images.shape[1])
    opt_state = tx.init(params)

    @jax.jit
    def step(params: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> Any:
        loss, gradients = jax.value_and_grad(stack.loss)(params, x, y)
        updates, opt_state = tx.update(gradients, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    rng, found, losses = np.random.default_rng(0), {}, []
    for number in range(steps):
        if number in SNAPSHOTS:
            found[number] = measured(stack, params, images[:BATCH], labels[:BATCH])
        chosen = rng.integers(0, len(images), 128)
        params, opt_state, loss = step(params, opt_state, images[chosen], labels[chosen])
        losses.append(float(loss))
    found[steps] = measured(stack, params, images[:BATCH], labels[:BATCH])
    return found, np.array(losses)


def draw(result: Result) -> Any:
    plt = figures.pyplot()
    figure, axes = plt.subplots(2, 4, figsize=(19, 8.5), layout="constrained")
    for column, words in enumerate(CASES.values()):
        layers, ratios = axes[0, column], axes[1, column]
        for kind in KINDS:
            norms = np.maximum(result.at_birth[words, kind, SHOWN].arriving, TINY)
            layers.plot(
                np.linspace(1, SHOWN, len(norms)),
                norms / norms[-1],
                label=kind,
                markevery=0.11,
                markersize=5,
                **STYLES[kind],
            )
            points = [result.at_birth[words, kind, depth].ratio for depth in DEPTHS]
            ratios.plot(DEPTHS, points, label=kind, markersize=5, **STYLES[kind])
        layers.set(
            title=f"{words}: {SHOWN} layers",
            xlabel="layer",
            ylabel="|dJ/dx|, of the last layer's",
            yscale="log",
        )
        ratios.set(
            title="by depth",
            xlabel="layers",
            ylabel="|dJ/dx| at the first layer over the last",
            xscale="log",
            yscale="log",
        )
    losses, later = axes[0, 3], axes[1, 3]
    for kind in KINDS:
        steps = max(step for name, step in result.trained if name == kind)
        losses.plot(
            np.maximum(result.losses[kind], 1e-3),
            label=kind,
            markevery=0.11,
            markersize=5,
            **STYLES[kind],
        )
        norms = np.maximum(result.trained[kind, steps].arriving, TINY)
        later.plot(
            np.linspace(1, TRAINED, len(norms)),
            norms / norms[-1],
            label=kind,
            markevery=0.11,
            markersize=5,
            **STYLES[kind],
        )
    losses.set(
        title=f"Training {TRAINED} layers (Glorot's, no norm)",
        xlabel="step",
        ylabel="loss, nats",
        yscale="log",
    )
    later.set(
        title="gradients after it",
        xlabel="layer",
        ylabel="|dJ/dx|, of the last layer's",
        yscale="log",
    )
    for one in axes.flat:
        one.grid(alpha=0.3)
        if one is not losses:
            one.axhline(1, color="0.6", linewidth=0.8)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(KINDS)
    )
    figure.suptitle(
        "What arrives of the gradient at each layer: stacks of dense layers on digits, at initialisation and while they train"
    )
    return figure


def rows(result: Result) -> list[dict[str, Any]]:
    def each(case: str, kind: str, step: int, norms: Norms) -> list[dict[str, Any]]:
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

    born = [
        row
        for (words, kind, _), norms in result.at_birth.items()
        for row in each(words, kind, 0, norms)
    ]
    first = next(iter(CASES.values()))
    return born + [
        row
        for (kind, step), norms in result.trained.items()
        for row in each(f"training, {first}", kind, step, norms)
    ]


def claims(result: Result) -> list[Claim]:
    glorot, he, normed = CASES.values()
    found = []
    for depth in (30, SHOWN):
        plain, residual = (
            result.at_birth[glorot, kind, depth].ratio for kind in ("plain", "residual")
        )
        found.append(
            Claim(
                f"Gradients vanish with depth in a plain net, and don't with skip connections ({depth} layers, Glorot's initialisation, no norm)",
                "|dJ/dx| at the first block over the last",
                plain,
                residual,
                plain < 10.0 ** (-depth / 10) and residual > 1,
            )
        )
    plain, residual = (
        float(result.at_birth[glorot, kind, SHOWN].weights[0]) for kind in ("plain", "residual")
    )
    found.append(
        Claim(
            f"The first layer of {SHOWN} then has nothing to learn from in a plain net",
            "gradient norm of its weights",
            plain,
            residual,
            plain < 1e-6 < 1e-2 < residual,
        )
    )
    plain, residual = (result.at_birth[he, kind, SHOWN].ratio for kind in ("plain", "residual"))
    found.append(
        Claim(
            f"He's initialisation keeps a plain net's gradients within a factor of 1,000 ({SHOWN} layers); sums without a norm explode with it",
            "|dJ/dx| at the first block over the last",
            plain,
            residual,
            1e-3 < plain < 1e3 < residual,
        )
    )
    plain, residual = (
        result.at_birth[normed, kind, SHOWN].ratio for kind in ("plain", "preactivation")
    )
    found.append(
        Claim(
            f"With batch norm and {SHOWN} layers a plain net's gradients explode towards the first; a pre-activation net's don't",
            "|dJ/dx| at the first block over the last",
            plain,
            residual,
            plain > 1e6 and 0.1 < residual < 100,
        )
    )
    plain, residual = (float(result.losses[kind][-10:].mean()) for kind in ("plain", "residual"))
    found.append(
        Claim(
            f"A plain net of {TRAINED} layers does not train, a residual one does",
            "loss at the end, nats",
            plain,
            residual,
            residual < plain / 2,
        )
    )
    return found


EXPERIMENT = Experiment("gradients of 10 to 1,000 layers", run, draw, rows, claims)
