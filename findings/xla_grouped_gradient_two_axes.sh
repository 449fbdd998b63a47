#!/usr/bin/env bash
# XLA multiplies the kernel gradient of a grouped convolution on a mesh of two axes.
#
# Packages: jax 0.10.2, jaxlib 0.10.2, numpy 2.4.6; Python 3.11 or newer. The same was seen with jax
#           0.11.2 and 0.12.0.1 on Python 3.12, and with the older partitioner
#           (jax_use_shardy_partitioner=False) on 0.10.2.
# Guess:    the partitioner may choose what each device computes, but not the result. With the batch
#           split along `data` and copied along `model`, the usual layout of a mesh of two axes, the
#           gradient of a kernel is summed over `data`.
# Seen:     without groups it is. With feature_group_count > 1 it is summed over both axes: the
#           gradient is twice the right one where `model` has two devices, and four times where it
#           has four. The values are small whole numbers in float32, so no rounding is involved. The
#           gradient of the images is right, and so is a program in which the batch is split along
#           all axes or along none. No warning is printed.
# Matters:  ResNeXt, RegNet, ConvNeXt and MobileNet train with wrong gradients on such meshes, in any
#           library whose convolutions are lax.conv_general_dilated; the loss still falls. A part of
#           a batch that lies on some of the devices of a single axis shows the same, as in gradient
#           accumulation.
#
# Output seen:
#   groups 1, mesh (4, 2): gradient / right gradient = 1
#   groups 2, mesh (8, 1): gradient / right gradient = 1
#   groups 2, mesh (4, 2): gradient / right gradient = 2
#   groups 2, mesh (2, 4): gradient / right gradient = 4
#   groups 2, mesh (1, 8): gradient / right gradient = 1
#   groups 16, mesh (4, 2): gradient / right gradient = 2
#   groups 2, half of a batch of 16 on 8 devices: gradient / right gradient = 2
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$folder"
JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 "$folder/venv/bin/python" - <<'PYTHON'
import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

CHANNELS = 16


def gradient(x, cotangent, groups):
    """The gradient of the kernel of a 3x3 convolution."""

    def product(kernel):
        y = lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        return (y * cotangent).sum()

    return jax.grad(product)(np.zeros((3, 3, CHANNELS // groups, CHANNELS), np.float32))


def by_definition(x, cotangent, groups):
    """The same in NumPy, a product for each tap and group."""
    n, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    after = cotangent.reshape(n, height, width, groups, -1)
    taps = [
        np.einsum(
            "nhwgi,nhwgo->igo",
            padded[:, i : i + height, j : j + width].reshape(n, height, width, groups, -1),
            after,
        )
        for i in range(3)
        for j in range(3)
    ]
    return np.stack(taps).reshape(3, 3, CHANNELS // groups, CHANNELS)


def whole_numbers(rng, rows):
    return rng.integers(-3, 4, (rows, 4, 4, CHANNELS)).astype(np.float32)


def ratio(ours, right):
    (single,) = set((np.asarray(ours)[right != 0] / right[right != 0]).tolist())
    assert not np.asarray(ours)[right == 0].any()
    return round(single)


rng, seen = np.random.default_rng(0), []
function = jax.jit(gradient, static_argnums=2)
for groups, shape in ((1, (4, 2)), (2, (8, 1)), (2, (4, 2)), (2, (2, 4)), (2, (1, 8)), (16, (4, 2))):
    x, cotangent = whole_numbers(rng, 8), whole_numbers(rng, 8)
    mesh = Mesh(np.array(jax.devices()).reshape(shape), ("data", "model"))
    placed = jax.device_put((x, cotangent), NamedSharding(mesh, PartitionSpec("data")))
    seen.append(ratio(function(*placed, groups), by_definition(x, cotangent, groups)))
    print(f"groups {groups}, mesh {shape}: gradient / right gradient = {seen[-1]}")


@jax.jit
def of_half(x, cotangent):
    """The gradient of the first half of the rows of each pair of devices' neighbours."""
    halves = (a.reshape(-1, 2, 4, 4, 4, CHANNELS)[:, 0].reshape(8, 4, 4, CHANNELS) for a in (x, cotangent))
    return gradient(*halves, 2)


x, cotangent = whole_numbers(rng, 16), whole_numbers(rng, 16)
mesh = Mesh(np.array(jax.devices()), ("data",))
placed = jax.device_put((x, cotangent), NamedSharding(mesh, PartitionSpec("data")))
halves = (a.reshape(2, 2, 4, 4, 4, CHANNELS)[:, 0].reshape(8, 4, 4, CHANNELS) for a in (x, cotangent))
seen.append(ratio(of_half(*placed), by_definition(*halves, 2)))
print(f"groups 2, half of a batch of 16 on 8 devices: gradient / right gradient = {seen[-1]}")
assert seen == [1, 1, 2, 4, 1, 2, 2], seen
PYTHON
