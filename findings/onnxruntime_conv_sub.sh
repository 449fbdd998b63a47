#!/usr/bin/env bash
# ONNX Runtime folds a product and a sum by channel into the convolution before them, and leaves a
# difference alone, even one of zeros: (x - mean) * scale + bias costs three passes over the result.
#
# Packages: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6; Python 3.11 or newer.
# Guess:    with all graph optimisations, a difference, a product and a sum with constants by channel
#           behind a convolution become part of its kernel and bias, as a product and a sum do. A
#           difference of zeros is removed in any case.
# Seen:     Conv, Mul, Add, Relu become one node. Conv, Sub, Mul, Add, Relu stay five, also where the
#           subtracted constant is zero and the factor one. A Sub of a constant is no Add of its
#           negative to the optimiser.
# Matters:  an exporter that writes batch norm as JAX or NumPy code does, (x - mean) * scale + bias,
#           gets slower inference for the same arithmetic: ResNet-20 took 1.2 times as long. And nothing
#           can be put in 8 bits across these nodes.
#
# Output seen:
#   x * scale + bias: FusedConv
#   (x - mean) * scale + bias: Conv, Sub, Mul, Add, Relu
#   (x - 0) * 1 + bias: Conv, Sub, Mul, Add, Relu
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { tail -n 5 "$folder/log"; exit 1; }
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


def optimised(subtracted, scale):
    random = np.random.default_rng(0)
    row = (1, 4, 1, 1)
    constants = {
        "kernel": random.normal(size=(4, 3, 3, 3)),
        "scale": np.full(row, scale),
        "bias": random.normal(size=row),
    }
    steps = [("Conv", "kernel")]
    if subtracted is not None:
        constants["mean"] = np.full(row, subtracted)
        steps.append(("Sub", "mean"))
    steps += [("Mul", "scale"), ("Add", "bias")]
    nodes, last = [], "x"
    for kind, constant in steps:
        nodes.append(helper.make_node(kind, [last, constant], [kind]))
        last = kind
    nodes.append(helper.make_node("Relu", [last], ["y"]))
    graph = helper.make_graph(
        nodes,
        "norm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4, 6, 6))],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = "optimised.onnx"
    onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return ", ".join(node.op_type for node in onnx.load("optimised.onnx").graph.node)


seen = {
    "x * scale + bias": optimised(None, 0.5),
    "(x - mean) * scale + bias": optimised(0.3, 0.5),
    "(x - 0) * 1 + bias": optimised(0.0, 1.0),
}
for form, kinds in seen.items():
    print(f"{form}: {kinds}")
five = "Conv, Sub, Mul, Add, Relu"
assert list(seen.values()) == ["FusedConv", five, five], "the behaviour changed"
PYTHON
