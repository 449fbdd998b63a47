"""The loss around a trained network, in two random directions (Li et al. 2018, section 4).

The filters of the directions have the norms of the network's filters.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Float

from flaxres import figures
from flaxres.lab.claims import Claim
from flaxres.lab.drawing import STYLES, band, over_seeds
from flaxres.lab.networks import DEEP, KINDS, Trained, Variables, examples
from flaxres.lab.report import Experiment, Say, Settings, seed_by_seed

POINTS, REACH, EXAMPLES = 15, 1.0, 250


@dataclasses.dataclass(frozen=True)
class Result:
    """Losses on a grid around each network.

    Attributes:
      steps: positions along either direction, in units of the weights' norm.
      losses: kind -> loss on training images, in nats.
    """

    steps: Float[np.ndarray, "15"]
    losses: dict[str, Float[np.ndarray, "15 15"]]

    def excess(self, kind: str) -> Float[np.ndarray, "15 15"]:
        """Returns the losses less that of the network itself."""
        losses = self.losses[kind]
        difference: np.ndarray = losses - losses[POINTS // 2, POINTS // 2]
        return difference


def direction(key: jax.Array, params: Any) -> Any:
    """Draws a random direction (Li et al. 2018, section 4).

    Each filter (the kernel of an output channel) has the norm of the network's filter. Norms and
    biases are zero.

    Args:
      key: a PRNG key.
      params: parameters of the network.

    Returns:
      A tree like `params`.

    Examples:
      >>> params = {"kernel": jnp.full((4, 3), 2.5), "bias": jnp.ones(3)}
      >>> drawn = direction(jax.random.key(0), params)
      >>> jnp.linalg.norm(drawn["kernel"], axis=0).round(2), drawn["bias"]
      (Array([5., 5., 5.], dtype=float32), Array([0., 0., 0.], dtype=float32))
    """
    leaves, structure = jax.tree.flatten(params)

    def scaled(key: jax.Array, leaf: jax.Array) -> jax.Array:
        if leaf.ndim < 2:
            return jnp.zeros_like(leaf)
        random, axes = jax.random.normal(key, leaf.shape, leaf.dtype), tuple(range(leaf.ndim - 1))
        norm, drawn = (jnp.sqrt(jnp.square(array).sum(axes)) for array in (leaf, random))
        return random * norm / drawn

    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, map(scaled, keys, leaves))


@seed_by_seed
def run(settings: Settings, say: Say) -> Result:
    """Measures the loss around a plain and a residual network, which are trained if necessary.

    Args:
      settings: all but `image`, `weights` and `model` are used.
      say: receives lines of progress.
    """
    steps, losses = np.linspace(-REACH, REACH, POINTS), {}
    for kind in KINDS:
        network = Trained(settings, kind, DEEP, say)
        losses[kind] = surface(network, steps, settings.seed)
        centre, median = losses[kind][POINTS // 2, POINTS // 2], np.median(losses[kind])
        say(
            f"  {kind}, {DEEP} layers: loss {centre:.2f} at the centre, {median:.2f} around it "
            "(median)"
        )
    return Result(steps, losses)


def surface(
    network: Trained, steps: Float[np.ndarray, " steps"], seed: int
) -> Float[np.ndarray, "steps steps"]:
    """Returns the loss at all pairs of steps, with the network's running statistics.

    Args:
      network: a trained network.
      steps: positions along either direction.
      seed: of the directions and of the choice of training images.
    """
    images, labels = examples(network.run, network.run.train, EXAMPLES, seed)
    variables: Variables = network.variables
    first, second = (
        direction(key, variables["params"]) for key in jax.random.split(jax.random.key(seed))
    )

    # All of a seed is an argument, so that one compiled program serves every seed.
    fixed = variables, first, second, images, labels

    def loss(
        point: jax.Array, variables: Variables, first: Any, second: Any, images: Any, labels: Any
    ) -> jax.Array:
        params = jax.tree.map(
            lambda leaf, a, b: leaf + point[0] * a + point[1] * b,
            variables["params"],
            first,
            second,
        )
        moved = {"params": params, "batch_stats": variables["batch_stats"]}
        logits: Any = network.model.apply(moved, images)
        mean: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return mean

    grid = np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)
    if jax.default_backend() == "cpu":
        # In loops, XLA's CPU backend computes convolutions by naive code (jax issue 12868).
        one = jax.jit(loss)
        values = np.array([float(one(point, *fixed)) for point in grid])
    else:

        def every(points: jax.Array, *fixed: Any) -> jax.Array:
            losses: jax.Array = lax.map(lambda point: loss(point, *fixed), points)
            return losses

        values = np.asarray(jax.jit(every)(grid, *fixed))
    return values.reshape(len(steps), len(steps))


def draw(results: Sequence[Result]) -> Any:
    """Draws the first seed's losses as contours, and all by distance; returns a figure."""
    plt = figures.pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(16, 5), layout="constrained")
    result = results[0]
    low = max(min(float(losses.min()) for losses in result.losses.values()), 1e-3)
    largest = [
        float(np.nanmax(np.where(np.isfinite(losses), losses, np.nan)))
        for losses in result.losses.values()
    ]
    high = min(max(largest), 1e4)
    levels, steps = np.geomspace(low, high, 16), result.steps
    white = {"colors": "white", "linewidths": 0.6}
    for one, (kind, losses) in zip(axes, result.losses.items(), strict=False):
        clipped = np.clip(np.nan_to_num(losses, nan=high, posinf=high), low, high).T
        drawn = one.contourf(steps, steps, clipped, levels=levels, cmap="cividis", norm="log")
        lines = one.contour(steps, steps, clipped, levels=levels[::3], **white)
        one.clabel(lines, fmt=_number, fontsize=7)
        one.plot(0, 0, "w*", markersize=10)
        one.set(title=f"{kind}, {DEEP} layers", xlabel="first random direction", aspect="equal")
    axes[0].set(ylabel="second random direction")
    label = "loss, nats (logarithmic)"
    figure.colorbar(drawn, ax=axes[:2], label=label, format=lambda value, _: _number(value))
    _draw_rise(axes[2], results)
    figure.suptitle("The loss around the trained network (star), filter-normalised directions")
    return figure


def _draw_rise(axes: Any, results: Sequence[Result]) -> None:
    """Draws the rise of the loss by the distance from the network."""
    steps = results[0].steps
    distance = np.hypot(*np.meshgrid(steps, steps)).round(6)
    distances = np.unique(distance[distance <= REACH])[1:]
    for kind in KINDS:
        rises = [np.nan_to_num(result.excess(kind), nan=np.inf) for result in results]
        curves = [[np.median(rise[distance == at]) for at in distances] for rise in rises]
        shown = np.clip(curves, 1e-3, 1e4)
        band(axes, distances, shown, label=kind, markersize=4, **STYLES[kind])
    title = "rise by distance" + over_seeds(results)
    axes.set(title=title, xlabel="distance from the star", ylabel="rise of the loss, nats")
    axes.set(yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()


def _number(loss: float) -> str:
    return f"{loss:,.0f}" if loss >= 10 else f"{loss:.2g}"


def rows(result: Result) -> list[dict[str, Any]]:
    """Returns one row for each network and pair of steps."""
    return [
        {"kind": kind, "first": a, "second": b, "loss": losses[i, j]}
        for kind, losses in result.losses.items()
        for i, a in enumerate(result.steps)
        for j, b in enumerate(result.steps)
    ]


def claims(result: Result) -> list[Claim]:
    """Tests whether the residual network's loss is lower and rises less around it.

    The rise is the median over everything that is drawn. Near a network that learned next to
    nothing, as deep plain ones do, the loss is flat for no other reason.
    """
    rise = {
        kind: float(np.median(np.nan_to_num(result.excess(kind), nan=np.inf, posinf=np.inf)))
        for kind in KINDS
    }
    centre = {
        kind: float(losses[POINTS // 2, POINTS // 2]) for kind, losses in result.losses.items()
    }
    return [
        Claim(
            f"The loss rises less around a residual network of {DEEP} layers "
            "than around a plain one",
            f"rise of the loss, median of steps up to {REACH:g} in either direction, nats",
            rise["plain"],
            rise["residual"],
            rise["residual"] < rise["plain"],
            powers=True,
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
