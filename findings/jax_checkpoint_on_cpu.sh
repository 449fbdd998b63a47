#!/usr/bin/env bash
# On CPUs jax.checkpoint saves no memory: XLA merges the recomputation with the forward pass.
#
# Packages: jax and jaxlib 0.10.2, Python 3.11 or newer.
# Guess:    jax.checkpoint recomputes a block's activations in the backward pass on every platform; its
#           `prevent_cse=True` is there to keep the compiler from merging the two.
# Seen:     of 24 blocks in a Python loop the compiled gradient needs the same memory with and without
#           jax.checkpoint. The same blocks in a scan need less with it.
# Matters:  memory of a program with checkpoints, measured on a CPU, says nothing about an accelerator,
#           and a program that runs out of memory on a CPU does so with checkpoints too, unless its
#           blocks are scanned.
#
# Output seen (temporary memory of the compiled gradient, MiB):
#   loop:             295.0
#   loop, checkpoint: 295.0
#   scan:             503.1
#   scan, checkpoint: 116.1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp

BLOCKS, ROWS, WIDTH = 24, 8192, 128


def block(x, pair):
    return x + jnp.tanh(jnp.tanh(x @ pair[0]) @ pair[1])


def loop(block):
    def loss(weights, x):
        for i in range(BLOCKS):
            x = block(x, weights[i])
        return jnp.square(x).sum()

    return loss


def scan(block):
    def loss(weights, x):
        return jnp.square(jax.lax.scan(lambda x, pair: (block(x, pair), None), x, weights)[0]).sum()

    return loss


def memory(loss):
    weights = jax.ShapeDtypeStruct((BLOCKS, 2, WIDTH, WIDTH), jnp.float32)
    x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
    compiled = jax.jit(jax.grad(loss)).lower(weights, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


found = {}
for name, form, call in (
    ("loop", loop, block),
    ("loop, checkpoint", loop, jax.checkpoint(block)),
    ("scan", scan, block),
    ("scan, checkpoint", scan, jax.checkpoint(block, prevent_cse=False)),
):
    found[name] = memory(form(call))
    print(f"{name + ':':18}{found[name]:.1f}")
assert found["loop, checkpoint"] > 0.99 * found["loop"], "the behaviour changed"
assert found["scan, checkpoint"] < 0.5 * found["scan"], "the behaviour changed"
PYTHON
