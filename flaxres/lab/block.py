"""The article's residual block and the plain one: fallback to the identity, and gradient.

The block is `x2 = relu(W2 relu(W1 x0 + b1) + b2 + x0)`; the plain one lacks the `+ x0`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxres import figures
from flaxres.lab.claims import Claim
from flaxres.lab.drawing import STYLES, band, over_seeds
from flaxres.lab.report import Experiment, Say, Settings, seed_by_seed

WIDTH, EXAMPLES = 16, 256
SCALES = np.concatenate([[0.0], np.logspace(-3, 0, 13)])

Weights = tuple[jax.Array, ...]


def _weights(key: jax.Array) -> Weights:
    """Returns W1, b1, W2, b2, with the variance of He et al. 2015."""
    first, second = jax.random.split(key)
    kernel = jax.nn.initializers.he_normal(dtype=jnp.float64)
    zeros = jnp.zeros(WIDTH, jnp.float64)
    return kernel(first, (WIDTH, WIDTH)), zeros, kernel(second, (WIDTH, WIDTH)), zeros


def _branch(weights: Weights, x: Float[Array, "n 16"]) -> Float[Array, "n 16"]:
    """Returns F(x), two dense layers."""
    w1, b1, w2, b2 = weights
    return jax.nn.relu(x @ w1 + b1) @ w2 + b2


@dataclasses.dataclass(frozen=True)
class Result:
    """Distances and gradients by the scale of the weights, for 'plain' and 'residual' blocks.

    Attributes:
      scales: factors of the weights.
      distance: distance of the output y from the input x, |y - x| / |x|.
      gradient: |dJ/dx| / |dJ/dy|.
      gradient_error: largest difference between dJ/dx by autodiff and `dJ/dH (F'(x) + I)` with F'
        computed by columns, relative to the largest entry.
    """

    scales: Float[np.ndarray, " scales"]
    distance: dict[str, Float[np.ndarray, " scales"]]
    gradient: dict[str, Float[np.ndarray, " scales"]]
    gradient_error: float


@seed_by_seed
def run(settings: Settings, say: Say) -> Result:
    """Measures both blocks in float64. J is a random linear function of the block's output.

    Args:
      settings: uses `seed`.
      say: unused; the experiment takes seconds.

    Examples:
      >>> import pathlib
      >>> (result,) = run(Settings(pathlib.Path("lab")), print)
      >>> result.distance["residual"][0]  # weights of zero: the identity
      np.float64(0.0)
    """
    del say
    with jax.enable_x64(True):
        weights_key, input_key, readout_key = jax.random.split(jax.random.key(settings.seed), 3)
        weights = _weights(weights_key)
        # A block's input has passed a ReLU.
        x = jnp.abs(jax.random.normal(input_key, (EXAMPLES, WIDTH), jnp.float64))
        readout = jax.random.normal(readout_key, (EXAMPLES, WIDTH), jnp.float64)

        def plain(scale: float, x: jax.Array) -> jax.Array:
            return jax.nn.relu(_branch(_scaled(weights, scale), x))

        def residual(scale: float, x: jax.Array) -> jax.Array:
            return jax.nn.relu(_branch(_scaled(weights, scale), x) + x)

        distance, gradient = {}, {}
        for name, block in (("plain", plain), ("residual", residual)):
            measured = [_measured(block, scale, x, readout) for scale in SCALES]
            distance[name], gradient[name] = map(np.array, zip(*measured, strict=True))
        return Result(SCALES, distance, gradient, _identity_error(weights, x, readout))


def _scaled(weights: Weights, scale: float) -> Weights:
    return tuple(scale * array for array in weights)


def _measured(
    block: Callable[[float, jax.Array], jax.Array],
    scale: float,
    x: Float[Array, "n 16"],
    readout: Float[Array, "n 16"],
) -> tuple[float, float]:
    """Returns |y - x| / |x| and |dJ/dx| / |dJ/dy|."""
    y = block(scale, x)
    (gradient,) = jax.vjp(lambda x: block(scale, x), x)[1](readout)
    distance = float(jnp.linalg.norm(y - x) / jnp.linalg.norm(x))
    return distance, float(jnp.linalg.norm(gradient) / jnp.linalg.norm(readout))


def _identity_error(
    weights: Weights, x: Float[Array, "n 16"], readout: Float[Array, "n 16"]
) -> float:
    """Compares `dJ/dx = dJ/dH (F'(x) + I)` (the article's equation, H = F(x) + x) to autodiff."""
    by_autodiff = jax.grad(lambda x: (readout * (_branch(weights, x) + x)).sum())(x)
    # F'(x) by columns of directional derivatives, independently of the reverse mode.
    columns = [
        jax.jvp(lambda x: _branch(weights, x), (x,), (jnp.broadcast_to(direction, x.shape),))[1]
        for direction in jnp.eye(WIDTH)
    ]
    jacobian = jnp.stack(columns, -1) + jnp.eye(WIDTH)  # (N, out, in)
    by_formula = jnp.einsum("no,noi->ni", readout, jacobian)
    return float(jnp.abs(by_autodiff - by_formula).max() / jnp.abs(by_autodiff).max())


def draw(results: Sequence[Result]) -> Any:
    """Draws distance and gradient by scale; returns a matplotlib figure."""
    plt = figures.pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    scales = results[0].scales
    for name in results[0].distance:
        style = {"label": name, "markersize": 4} | STYLES[name]
        band(left, scales, [result.distance[name] for result in results], **style)
        band(right, scales, [result.gradient[name] for result in results], **style)
    left.set(title="Distance of the output from the input", ylabel="|y - x| / |x|")
    right.set(title="Ratio of gradient norms, input to output", ylabel="|dJ/dx| / |dJ/dy|")
    label = "scale of the weights (1: He's initialisation)"
    for axes in (left, right):
        axes.set(xlabel=label, xlim=(0, 1), ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(
        "A block of two dense layers with weights of all sizes, with and without its shortcut"
        + over_seeds(results)
    )
    return figure


def rows(result: Result) -> list[dict[str, Any]]:
    """Returns one row for each block and scale."""
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
    """Tests the fallback to the identity, the gradient at zero weights, and its equation."""
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
