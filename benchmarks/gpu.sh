#!/usr/bin/env bash
# Measures correctness and speed on the GPU of this machine, in at most nine minutes.
# Needs jax (CUDA), flax, optax, torch, torchvision, timm and this checkout.
set -euo pipefail
cd "$(dirname "$0")/.."
export XLA_PYTHON_CLIENT_PREALLOCATE=false TF_CPP_MIN_LOG_LEVEL=2 PYTHONPATH=.
exec timeout 540 python3 -m benchmarks.gpu "$@"
