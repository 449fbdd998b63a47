"""The loss around a trained network, in two random directions whose filters have the norms of the network's own (Li et al. 2018, section 4)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from flaxres import figures
from flaxres.lab.networks import DEEP, KINDS, Trained, Variables, examples
from flaxres.lab.report import Claim, Experiment, Say, Settings

POINTS, REACH, EXAMPLES = 15, 1.0, 250


@dataclasses.dataclass(frozen=True)
class Result:
    """`steps` (15,): along either direction, in units of the weights' own norm. `losses`: kind -> (15, 15), nats, on training images."""

    steps: np.ndarray
    losses: dict[str, np.ndarray]

    def excess(self, kind: str) -> np.ndarray:
        """Loss over that of the network itself."""
        return self.losses[kind] - self.losses[kind][POINTS // 2, POINTS // 2]


def direction(key: jax.Array, params: Any) -> Any:
    """Random, each filter (the kernel of an output channel) as long as the network's; norms and biases stay (Li et al. 2018, section 4)."""
    leaves, structure = jax.tree.flatten(params)

    def scaled(key: jax.Array, leaf: jax.Array) -> jax.Array:
        if leaf.ndim < 2:
            return jnp.zeros_like(leaf)
        random, axes = jax.random.normal(key, leaf.shape, leaf.dtype), tuple(range(leaf.ndim - 1))
        own, drawn = (jnp.sqrt(jnp.square(array).sum(axes)) for array in (leaf, random))
        return random * own / drawn

    return jax.tree.unflatten(
        structure,
        [
            scaled(key, leaf)
            for key, leaf in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
        ],
    )


def run(settings: Settings, say: Say) -> Result:
    steps, losses = np.linspace(-REACH, REACH, POINTS), {}
    for kind in KINDS:
        network = Trained(settings, kind, DEEP, say)
        losses[kind] = surface(network, steps, settings.seed)
        centre = losses[kind][POINTS // 2, POINTS // 2]
        say(
            f"  {kind}, {DEEP} layers: loss {centre:.2f} at the centre, {np.median(losses[kind]):.2f} around it (median)"
        )
    return Result(steps, losses)


def surface(network: Trained, steps: np.ndarray, seed: int) -> np.ndarray:
    """Loss at all pairs of steps, (15, 15), with the running statistics of the network itself."""
    images, labels = examples(network.run, network.run.train, EXAMPLES, seed)
    variables: Variables = network.variables
    first, second = (
        direction(key, variables["params"]) for key in jax.random.split(jax.random.key(seed))
    )

    def loss(point: jax.Array) -> jax.Array:
        params = jax.tree.map(
            lambda leaf, a, b: leaf + point[0] * a + point[1] * b,
            variables["params"],
            first,
            second,
        )
        logits: Any = network.model.apply(
            {"params": params, "batch_stats": variables["batch_stats"]}, images
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    grid = np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)
    if (
        jax.default_backend() == "cpu"
    ):  # whose loops leave convolutions to naive code (jax issue 12868)
        one = jax.jit(loss)
        values = np.array([float(one(point)) for point in grid])
    else:
        values = np.asarray(jax.jit(lambda points: lax.map(loss, points))(grid))
    return values.reshape(len(steps), len(steps))


def draw(result: Result) -> Any:
    plt = figures.pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained", sharey=True)
    low = max(min(float(losses.min()) for losses in result.losses.values()), 1e-3)
    high = min(
        max(
            float(np.nanmax(np.where(np.isfinite(losses), losses, np.nan)))
            for losses in result.losses.values()
        ),
        1e4,
    )
    levels = np.geomspace(low, high, 16)
    for one, (kind, losses) in zip(axes, result.losses.items(), strict=True):
        clipped = np.clip(np.nan_to_num(losses, nan=high, posinf=high), low, high)
        drawn = one.contourf(
            result.steps, result.steps, clipped.T, levels=levels, cmap="cividis", norm="log"
        )
        lines = one.contour(
            result.steps,
            result.steps,
            clipped.T,
            levels=levels[::3],
            colors="white",
            linewidths=0.6,
        )
        one.clabel(lines, fmt=spoken, fontsize=7)
        one.plot(0, 0, "w*", markersize=10)
        one.set(title=f"{kind}, {DEEP} layers", xlabel="first random direction", aspect="equal")
    axes[0].set(ylabel="second random direction")
    figure.colorbar(
        drawn, ax=axes, label="loss, nats (logarithmic)", format=lambda value, _: spoken(value)
    )
    figure.suptitle("The loss around the trained network (star), filter-normalised directions")
    return figure


def spoken(loss: float) -> str:
    return f"{loss:,.0f}" if loss >= 10 else f"{loss:.2g}"


def rows(result: Result) -> list[dict[str, Any]]:
    return [
        {"kind": kind, "first": a, "second": b, "loss": losses[i, j]}
        for kind, losses in result.losses.items()
        for i, a in enumerate(result.steps)
        for j, b in enumerate(result.steps)
    ]


def claims(result: Result) -> list[Claim]:
    # Over all that is drawn: near a network that learned next to nothing, as deep plain ones do, the loss is flat for that alone.
    rise = {
        kind: float(np.median(np.nan_to_num(result.excess(kind), nan=np.inf, posinf=np.inf)))
        for kind in KINDS
    }
    centre = {
        kind: float(losses[POINTS // 2, POINTS // 2]) for kind, losses in result.losses.items()
    }
    return [
        Claim(
            f"The loss rises less around a residual network of {DEEP} layers than around a plain one",
            f"rise of the loss, median of steps up to {REACH:g} in either direction, nats",
            rise["plain"],
            rise["residual"],
            rise["residual"] < rise["plain"],
        ),
        Claim(
            "and the residual network lies lower",
            "loss at the centre, nats",
            centre["plain"],
            centre["residual"],
            centre["residual"] < centre["plain"],
        ),
    ]


EXPERIMENT = Experiment("loss surfaces of a plain and a residual network", run, draw, rows, claims)
