"""The article's residual block, `x2 = relu(W2 relu(W1 x0 + b1) + b2 + x0)`, beside the plain one: its fallback to the identity, and its gradient."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxres import figures
from flaxres.lab.report import STYLES, Claim, Experiment, Say, Settings

WIDTH, EXAMPLES = 16, 256
SCALES = np.concatenate([[0.0], np.logspace(-3, 0, 13)])


def weights_of(key: jax.Array) -> tuple[jax.Array, ...]:
    """W1, b1, W2, b2, of He et al.'s 2015 variance."""
    first, second = jax.random.split(key)
    kernel = jax.nn.initializers.he_normal(dtype=jnp.float64)
    zeros = jnp.zeros(WIDTH, jnp.float64)
    return kernel(first, (WIDTH, WIDTH)), zeros, kernel(second, (WIDTH, WIDTH)), zeros


def branch(weights: tuple[jax.Array, ...], x: jax.Array) -> jax.Array:
    """F(x): two dense layers, (N, 16) -> (N, 16)."""
    w1, b1, w2, b2 = weights
    return jax.nn.relu(x @ w1 + b1) @ w2 + b2


@dataclasses.dataclass(frozen=True)
class Result:
    """By the scale of the weights (S,), of both blocks: how far the output is from the input, |y - x| / |x|, and |dJ/dx| over |dJ/dy|.

    `gradient_error`: the largest difference between dJ/dx by autodiff and `dJ/dH (F'(x) + I)` with F' computed by columns, over the largest entry.
    """

    scales: np.ndarray
    distance: dict[str, np.ndarray]
    gradient: dict[str, np.ndarray]
    gradient_error: float


def run(settings: Settings, say: Say) -> Result:
    """In float64. J is a random linear function of the block's output."""
    del say
    with jax.enable_x64(True):
        weights_key, input_key, readout_key = jax.random.split(jax.random.key(settings.seed), 3)
        weights = weights_of(weights_key)
        x = jnp.abs(
            jax.random.normal(input_key, (EXAMPLES, WIDTH), jnp.float64)
        )  # a block's input has come through a ReLU
        readout = jax.random.normal(readout_key, (EXAMPLES, WIDTH), jnp.float64)
        blocks = {
            "plain": lambda scale, x: jax.nn.relu(branch(scaled(weights, scale), x)),
            "residual": lambda scale, x: jax.nn.relu(branch(scaled(weights, scale), x) + x),
        }
        distance, gradient = {}, {}
        for name, function in blocks.items():
            outputs = [function(scale, x) for scale in SCALES]
            distance[name] = np.array(
                [float(jnp.linalg.norm(y - x) / jnp.linalg.norm(x)) for y in outputs]
            )
            pulled = [
                jax.vjp(lambda x, scale=scale, function=function: function(scale, x), x)[1](
                    readout
                )[0]
                for scale in SCALES
            ]
            gradient[name] = np.array(
                [float(jnp.linalg.norm(g) / jnp.linalg.norm(readout)) for g in pulled]
            )
        return Result(SCALES, distance, gradient, identity_error(weights, x, readout))


def scaled(weights: tuple[jax.Array, ...], scale: float) -> tuple[jax.Array, ...]:
    return tuple(scale * array for array in weights)


def identity_error(weights: tuple[jax.Array, ...], x: jax.Array, readout: jax.Array) -> float:
    """`dJ/dx = dJ/dH (F'(x) + I)` (the article's equation, H = F(x) + x) against autodiff."""
    by_autodiff = jax.grad(lambda x: (readout * (branch(weights, x) + x)).sum())(x)
    # F'(x) by columns of directional derivatives, independently of the reverse mode.
    columns = [
        jax.jvp(lambda x: branch(weights, x), (x,), (jnp.broadcast_to(direction, x.shape),))[1]
        for direction in jnp.eye(WIDTH)
    ]
    jacobian = jnp.stack(columns, -1) + jnp.eye(WIDTH)  # (N, out, in)
    by_formula = jnp.einsum("no,noi->ni", readout, jacobian)
    return float(jnp.abs(by_autodiff - by_formula).max() / jnp.abs(by_autodiff).max())


def draw(result: Result) -> Any:
    plt = figures.pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name in result.distance:
        left.plot(result.scales, result.distance[name], label=name, markersize=4, **STYLES[name])
        right.plot(result.scales, result.gradient[name], label=name, markersize=4, **STYLES[name])
    left.set(title="Distance of the output from the input", ylabel="|y - x| / |x|")
    right.set(title="What a gradient keeps on its way through", ylabel="|dJ/dx| / |dJ/dy|")
    for axes in (left, right):
        axes.set(
            xlabel="scale of the weights (1: He's initialisation)", xlim=(0, 1), ylim=(0, None)
        )
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(
        "A block of two dense layers with weights of all sizes, with and without its shortcut"
    )
    return figure


def rows(result: Result) -> list[dict[str, Any]]:
    return [
        {
            "kind": kind,
            "scale": scale,
            "distance": result.distance[kind][i],
            "gradient": result.gradient[kind][i],
        }
        for kind in result.distance
        for i, scale in enumerate(result.scales)
    ]


def claims(result: Result) -> list[Claim]:
    zero = {kind: float(values[0]) for kind, values in result.distance.items()}
    small = {kind: float(values[0]) for kind, values in result.gradient.items()}
    return [
        Claim(
            "A residual block falls back to the identity when its weights are zero",
            "distance of output from input, |y - x| / |x|",
            zero["plain"],
            zero["residual"],
            zero["residual"] == 0 and zero["plain"] == 1,
        ),
        Claim(
            "Its gradient then passes whole",
            "|dJ/dx| / |dJ/dy| at weights of zero",
            small["plain"],
            small["residual"],
            small["residual"] > 0.99 and small["plain"] == 0,
        ),
        Claim(
            "dJ/dx = dJ/dH (F'(x) + I)",
            "largest difference from autodiff, of the largest entry",
            None,
            result.gradient_error,
            result.gradient_error < 1e-12,
        ),
    ]


EXPERIMENT = Experiment("the article's block, plain and residual", run, draw, rows, claims)
