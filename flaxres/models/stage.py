"""The blocks of one width, in order: one by one, or scanned.

Blocks are named by index, as in PyTorch's `layer1`. In a scanned stage those after the first share
one trace, and their parameters are stacked under the name `SCANNED`. `stack_blocks` and
`unstack_blocks` convert between the two forms.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

SCANNED = "scanned"


class Stage(nn.Module):
    """The blocks of one width.

    Attributes:
      first: makes the first block, which may change the shape.
      rest: makes each further block, which keeps the shape.
      pruned: for each block, the widths of its convolutions, if they differ from block to block;
        such blocks can't be scanned.
      drop_rates: rate of stochastic depth of each block.
      scales: a further number for each block, an argument of its call, or ().
      scan: trace the blocks after the first only once, under `nn.scan`, so that compile time does
        not grow with depth.
      remat: recompute a block's activations in the backward pass instead of keeping them.
    """

    first: Callable[..., nn.Module]
    rest: Callable[..., nn.Module]
    drop_rates: tuple[float, ...]
    scan: bool = False
    remat: bool = False
    pruned: tuple[tuple[int, ...], ...] = ()
    scales: tuple[float, ...] = ()

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 k"]:
        if self.pruned:
            for i, (rate, widths) in enumerate(zip(self.drop_rates, self.pruned, strict=True)):
                block = (self.rest if i else self.first)(pruned=widths, name=str(i))
                x = self.call(block, x, train, (rate,))
            return x
        scales = (self.scales,) if self.scales else ()
        numbers = list(zip(self.drop_rates, *scales, strict=True))
        x = self.call(self.first(name="0"), x, train, numbers[0])
        if self.scan and len(numbers) > 2:
            rates = jnp.asarray(self.drop_rates[1:], jnp.float32)
            scanned: Callable[..., tuple[jax.Array, None]] = nn.scan(
                lambda block, carry, each: (self.call(block, carry, train, each, True), None),
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True, "dropout": True},
                length=len(rates),
            )
            rest = (rates, *(jnp.asarray(each[1:]) for each in scales))
            return scanned(self.rest(name=SCANNED), x, rest)[0]
        for i, each in enumerate(numbers[1:], 1):
            x = self.call(self.rest(name=str(i)), x, train, each)
        return x

    def call(
        self,
        block: nn.Module,
        x: Float[Array, "n h w c"],
        train: bool,
        numbers: tuple[Any, ...],
        scanned: bool = False,
    ) -> Float[Array, "n h2 w2 k"]:
        """Calls a block with its numbers, rematerialised if `remat` is set.

        Outside of a scan, `prevent_cse` adds barriers; without them the compiler reuses the
        activations of the forward pass. In a scan it can't, since forward and backward pass are
        loops of their own.
        """
        y: jax.Array
        if not self.remat:
            y = block(x, train, *numbers)
            return y
        recomputed: Callable[..., jax.Array] = nn.remat(
            lambda block, x, *numbers: block(x, train, *numbers), prevent_cse=not scanned
        )
        return recomputed(block, x, *numbers)


def unstack_blocks(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Splits every scanned stage of `variables` into blocks named by index.

    Other stages are left unchanged. `variables` may be any part of a network's variables.
    """
    result: dict[str, Any] = {}
    for name, value in variables.items():
        if name == SCANNED:
            for i in range(jax.tree.leaves(value)[0].shape[0]):
                result[str(i + 1)] = jax.tree.map(lambda leaf, i=i: leaf[i], value)
        else:
            result[name] = unstack_blocks(value) if isinstance(value, Mapping) else value
    return result


def unroll(model: Any, variables: Any) -> tuple[Any, Any]:
    """Returns a network with `scan_blocks=False`, and its variables."""
    if not model.scan_blocks:
        return model, variables
    return model.clone(scan_blocks=False, parent=None), unstack_blocks(variables)


def stack_blocks(variables: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Stacks the blocks of each scanned stage; the inverse of `unstack_blocks`.

    Args:
      variables: with blocks named by index.
      like: the variables of the network with `scan_blocks=True`, or their shapes.
    """
    result = {}
    for name, value in like.items():
        if name == SCANNED:
            blocks = [variables[key] for key in sorted(variables, key=int) if key not in like]
            result[name] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
        elif isinstance(value, Mapping):
            result[name] = stack_blocks(variables[name], value)
        else:
            result[name] = variables[name]
    return result
