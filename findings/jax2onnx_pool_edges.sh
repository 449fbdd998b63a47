#!/usr/bin/env bash
# jax2onnx converts a pooling by lax, and refuses the same pooling written as flax.linen.pool.
#
# Packages: jax2onnx 0.17.1, onnx 1.23.2, onnx-ir 1.1.0, equinox 0.13.8, onnxruntime 1.32.0, jax 0.10.2,
#           jaxlib 0.10.2, flax 0.12.8, numpy 2.4.6; Python 3.11 or newer.
# Guess:    a converter of JAX programs sees primitives. nn.pool only calls lax.reduce_window, so both
#           forms give one graph.
# Seen:     while it traces, jax2onnx replaces flax.linen.pool by an operation of its own, which takes
#           padding 'SAME' or 'VALID' as text alone. Explicit padding, even ((0, 0), (0, 0)), which is
#           'VALID', raises NotImplementedError. lax.reduce_window with any explicit padding is
#           converted, and ONNX Runtime computes JAX's values.
# Matters:  whether a network converts depends on how its layers are spelled, not on what they compute.
#           ResNet-D's shortcuts and DenseNet's transitions, written with nn.pool, do not convert.
#
# Output seen:
#   nn.pool, no padding:             NotImplementedError
#   lax.reduce_window, no padding:   largest difference 0.0
#   lax.reduce_window, one edge:     largest difference 4.8e-07
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 numpy==2.4.6 onnx==1.23.2 \
  onnxruntime==1.32.0 onnx-ir==1.1.0 equinox==0.13.8
"$folder/venv/bin/pip" install -q --no-deps jax2onnx==0.17.1
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import warnings

warnings.simplefilter("ignore")
import jax
import numpy as np
import onnxruntime
from flax import linen as nn
from jax import lax
from jax2onnx import to_onnx

x = np.random.default_rng(0).normal(size=(2, 6, 6, 4)).astype(np.float32)


def by_flax(x):
    return nn.pool(x, 0.0, lax.add, (2, 2), (2, 2), ((0, 0), (0, 0)))


def by_lax(x, edges=(0, 0), strides=(1, 2, 2, 1)):
    return lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), strides, ((0, 0), edges, edges, (0, 0)))


def one_edge(x):
    return by_lax(x, (0, 1), (1, 1, 1, 1))


def outcome(function):
    try:
        path = to_onnx(function, [jax.ShapeDtypeStruct(x.shape, x.dtype)], return_mode="file",
                       output_path="pool.onnx")
    except NotImplementedError:
        return "NotImplementedError"
    session = onnxruntime.InferenceSession("pool.onnx")
    (ours,) = session.run(None, {session.get_inputs()[0].name: x})
    return f"largest difference {float(np.abs(ours - function(x)).max())}"


assert (np.asarray(by_flax(x)) == by_lax(x)).all(), "the two are not the same pooling"
seen = [outcome(function) for function in (by_flax, by_lax, one_edge)]
names = ("nn.pool, no padding:", "lax.reduce_window, no padding:", "lax.reduce_window, one edge:")
for name, result in zip(names, seen):
    print(f"{name:32} {result}")
small = all(float(text.rpartition(" ")[2]) < 1e-5 for text in seen[1:])
assert seen[0] == "NotImplementedError" and small, "the behaviour changed"
PYTHON
