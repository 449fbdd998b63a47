#!/usr/bin/env bash
# XLA's CPU compiler sums padded pooling windows wrongly on some tiny maps.
#
# Packages: jax 0.10.2, jaxlib 0.10.2, flax 0.12.8, numpy 2.4.2, Python 3.11 or newer.
# Guess:    flax.linen.avg_pool over 2x2 windows at stride 2, with one row and column of padding that
#           do not count, returns a 1x1 map as it is, whatever the batch.
# Seen:     so it is for a batch of 2. For a batch of 16 with 256 channels, under jit, the result has
#           values that are not in the input's place, off by several deviations. No error, no warning.
# Matters:  the shortcuts of ResNet-D pool so. On small images a network gives other logits in
#           another batch or on another number of devices.
#
# Output seen:
#   batch  2: largest difference 0.0
#   batch 16: wrong values
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 numpy==2.4.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import numpy as np
from flax import linen as nn

pool = jax.jit(
    lambda x: nn.avg_pool(x, (2, 2), (2, 2), [(0, 1), (0, 1)], count_include_pad=False)
)
x = np.random.default_rng(0).normal(size=(16, 1, 1, 256)).astype(np.float32)
few, many = (float(np.abs(np.asarray(pool(part)) - part).max()) for part in (x[:2], x))
print(f"batch  2: largest difference {few}")
print(f"batch 16: {'wrong values' if many > 1 else 'right values'}")
assert few == 0 and many > 1, "the behaviour changed"
PYTHON
