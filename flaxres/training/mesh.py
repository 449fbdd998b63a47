"""One mesh axis, `data`, over all devices of all hosts; arrays are either replicated on it or split along their first axis."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def data_mesh(devices: int | None = None) -> Mesh:
    """The first `devices` devices (all by default) in the order of their hosts, so that a host's rows of a batch are neighbours."""
    ordered = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))[:devices]
    return Mesh(np.array(ordered), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array that every process holds whole, as one global array."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec("data"))
