"""The programs of Linen and NNX networks, compared for every name.

    python -m tools.nnx_equality [--json] [NAME ...]

For each name, the logits of inference, and the logits, gradients and new statistics of a training
step, are lowered to StableHLO twice: from the Linen network, and from the NNX network. The two
texts must be the same, so that the results are the same to the bit. It takes about 20 minutes for
all names, and compiles nothing.
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import flaxres
import flaxres.nnx
from benchmarks import command

IMAGES = 2
Step = Callable[..., Any]


def smallest_side(model: Any) -> int:
    """Returns the smallest side of images that a network takes, at least 8."""
    return next(side for side in range(8, 512) if model.extents(side) is not None)


def linen_step(model: Any) -> Step:
    """Returns inference and a training step of a Linen network.

    The step is `(params, statistics, images) -> (logits, training logits, statistics, gradients)`.
    """

    def step(params: Any, statistics: Any, images: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            variables = {"params": params, "batch_stats": statistics}
            logits, new = model.apply(variables, images, train=True, mutable=["batch_stats"])
            return jnp.square(logits).sum(), (logits, new.get("batch_stats", {}))

        logits = model.apply({"params": params, "batch_stats": statistics}, images)
        gradients, (train_logits, new) = jax.grad(loss, has_aux=True)(params)
        return logits, train_logits, new, gradients

    return step


def nnx_step(model: flaxres.nnx.Network) -> Step:
    """Returns the same for an NNX network, written with NNX's transformations."""
    graphdef, params_state, statistics_state = nnx.split(model, nnx.Param, nnx.BatchStat)

    def step(params: Any, statistics: Any, images: jax.Array) -> Any:
        def loss(model: flaxres.nnx.Network) -> Any:
            logits = model(images)
            return jnp.square(logits).sum(), logits

        nnx.replace_by_pure_dict(params_state, params)
        nnx.replace_by_pure_dict(statistics_state, statistics)
        model = nnx.merge(graphdef, params_state, statistics_state)
        model.eval()
        logits = model(images)
        model.train()
        gradients, train_logits = nnx.grad(loss, has_aux=True)(model)
        new = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
        return logits, train_logits, new, nnx.to_pure_dict(gradients)

    return step


def steps(name: str, **attributes: Any) -> tuple[Step, Step, tuple[Any, ...]]:
    """Returns the steps of both networks, and the shapes of their arguments.

    Args:
      name: of the network.
      **attributes: of the network.
    """
    linen = flaxres.create_model(name, **attributes)
    side = smallest_side(linen)
    images = jax.ShapeDtypeStruct((IMAGES, side, side, linen.in_channels), jnp.float32)
    model = nnx.eval_shape(lambda: flaxres.nnx.create_model(name, rngs=nnx.Rngs(0), **attributes))
    leaves = (nnx.to_pure_dict(nnx.state(model, kind)) for kind in (nnx.Param, nnx.BatchStat))
    return linen_step(linen), nnx_step(model), (*leaves, images)


def programs(name: str, **attributes: Any) -> tuple[str, str]:
    """Returns the StableHLO of the Linen network's step and of the NNX network's.

    Args:
      name: of the network.
      **attributes: of the network.
    """
    linen, nnx_, arguments = steps(name, **attributes)
    first, second = (jax.jit(step).lower(*arguments).as_text() for step in (linen, nnx_))
    return first, second


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("names", nargs="*", help="of networks (all)")
    chosen = parser.parse_args()
    same, different = 0, 0
    for name in chosen.names or flaxres.list_models():
        linen, nnx_ = programs(name)
        same, different = same + (linen == nnx_), different + (linen != nnx_)
        verdict = "the same program" if linen == nnx_ else "ANOTHER PROGRAM"
        print(f"{name}: {verdict}, {linen.count(chr(10))} lines", flush=True)
    command.show({"same": same, "different": different}, chosen.json, "d")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
