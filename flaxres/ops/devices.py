"""Native calls in programs for several CPU devices: each device computes its images.

XLA can't divide an operation that it does not know. Within `jax.shard_map` it need not: there the
program is that of one device, and sums over the devices are written out.
"""

import contextvars
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

AXIS = "data"
WHOLE, ROWS = PartitionSpec(), PartitionSpec(AXIS)
"""Places of an array: a whole copy on each device, or rows on each."""
_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


def dividing(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Returns a function that is traced for a mesh whose axis `data` divides the images."""

    @functools.wraps(function)
    def traced(*arguments: Any) -> Any:
        token = _mesh.set(mesh)
        try:
            return function(*arguments)
        finally:
            _mesh.reset(token)

    return traced if mesh.size > 1 else function


def count() -> int:
    """Returns the number of devices that divide the images."""
    mesh = _mesh.get()
    return 1 if mesh is None else mesh.size


def divisible(images: int) -> bool:
    """Returns whether native calls can be divided: among CPUs whose number divides the images."""
    mesh = _mesh.get()
    return mesh is None or (images % mesh.size == 0 and mesh.devices.flat[0].platform == "cpu")


def total(array: jax.Array) -> jax.Array:
    """Returns the sum over the devices, within a function that `on_each` calls."""
    return array if count() == 1 else jax.lax.psum(array, AXIS)


def on_each(function: Callable[..., Any], operands: Any, results: Any) -> Callable[..., Any]:
    """Returns a function that every device calls for its images.

    Args:
      function: a function of arrays.
      operands, results: places of its operands and results.
    """
    mesh = _mesh.get()
    if mesh is None:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=operands, out_specs=results)
