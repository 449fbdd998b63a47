"""One mesh axis, `data`, over all devices of all hosts.

Arrays are either replicated on it or split along their first axis.
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxres.ops.devices import AXIS


def data_mesh(devices: int | None = None) -> Mesh:
    """Returns the mesh of the first `devices` devices, all by default.

    They are in the order of their hosts, so that a host's rows of a batch are neighbours.
    """
    ordered = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))[:devices]
    return Mesh(np.array(ordered), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Returns the global array of an array that every process holds whole."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding with a whole copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Returns the sharding along the first axis."""
    return NamedSharding(mesh, PartitionSpec(AXIS))
