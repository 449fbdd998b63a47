#!/usr/bin/env bash
# safetensors.numpy writes the memory under an array, not the array's values.
#
# Packages: safetensors 0.8.0, numpy 2.4.6, Python 3.11 or newer.
# Guess:    an array that is not contiguous in C order, such as a transpose, is copied first, or
#           refused, as safetensors.torch refuses it.
# Seen:     save and save_file write the buffer in its own order under the array's shape. No error,
#           no warning; load returns other values. ascontiguousarray before saving gives the right
#           ones.
# Matters:  weights that pass through .T, reshape(order="F") or an axis swap between frameworks
#           (HWIO and OIHW) are saved permuted, in files of the right names, shapes and dtypes.
#
# Output seen:
#   saved  [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
#   loaded [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
#   contiguous copy is loaded right: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q safetensors==0.8.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from safetensors import numpy as st

array = np.arange(6.0).reshape(2, 3).T
loaded = st.load(st.save({"kernel": array}))["kernel"]
copied = st.load(st.save({"kernel": np.ascontiguousarray(array)}))["kernel"]
print("saved ", array.tolist())
print("loaded", loaded.tolist())
print("contiguous copy is loaded right:", np.array_equal(copied, array))
assert loaded.shape == array.shape and loaded.dtype == array.dtype
assert loaded.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], "the behaviour changed"
assert np.array_equal(copied, array), "the behaviour changed"
PYTHON
