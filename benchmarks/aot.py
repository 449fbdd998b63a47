"""Memory traffic of a ResNet-50 training step on accelerators that this machine lacks.

    python -m benchmarks.aot [--json] [--topology NAME ...]

The compilers of TPUs and of CUDA need no such device. They compile two steps for a description of
one: ours, as `flaxres train` runs it with augmentation and checks, and the textbook's. Both are in
bfloat16, at 224 pixels, with 128 images per device; our batch statistics are of each device's 128
images. The program prints megabytes per image by type of kernel, arithmetic, memory, collectives
and the seconds of compiling. Among the figures are:

  *_bytes_vs_textbook   megabytes per image, ours over the textbook's; below 1 is less traffic. They
                        are operands and results of all kernels, for CUDA counted in the optimised
                        program, for TPUs by the compiler's cost model.
  *_collectives         communications in a step
  *_memory_gigabytes    arguments, temporaries and results of one device; `*_fits` compares them
                        with its memory

Each platform's compiler is installed in a separate environment on first use: 0.5 GB for TPUs,
4.5 GB for CUDA.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import venv
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

import flaxres
from benchmarks import command
from benchmarks.textbook import TEXTBOOK, plain_step
from flaxres import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from flaxres.cache import cache_folder
from flaxres.diagnostics.compiled import compile_facts
from flaxres.diagnostics.topology import DEVICES, ENVIRONMENT, absent_devices, platform_of
from flaxres.training.mesh import replicated, split
from flaxres.training.optimizers import learning_rate, optimizer
from flaxres.training.state import abstract_state
from flaxres.training.steps import compiled_train_step

IMAGES, SIZE, EPOCH = 128, 224, 1_281_167


# Name in the figures -> topology, and whether the textbook's step is compiled too.
TARGETS = {
    "h200": ("h200:1", True),
    "h200x8": ("h200:8", True),
    "v5e": ("v5e:2x4", True),
    "v5e_16x16": ("v5e:16x16", False),
    "v5p_4x4x4": ("v5p:4x4x4", False),
    "v6e_8x8": ("v6e:8x8", False),
}
# `jax[tpu]` brings libtpu 0.0.42, which can't compile for v6e.
COMPILERS = {
    "tpu": [f"jax=={jax.__version__}", "libtpu==0.0.52"],
    "cuda": [f"jax[cuda13]=={jax.__version__}"],
}


def our_step(mesh: Mesh) -> Any:
    """Lowers our training step."""
    batch = IMAGES * mesh.size
    config = Config(
        ModelConfig(dtype="bfloat16", bn_group=IMAGES),
        DataConfig(image_size=SIZE),
        optim=OptimConfig(nesterov=True),
        train=TrainConfig(batch),
    )
    name, group = config.model.name, config.model.bn_group
    model = flaxres.create_model(name, dtype=jnp.bfloat16, bn_group=group)
    steps = round(config.train.epochs * EPOCH / batch)
    schedule = learning_rate(config.optim, steps, EPOCH / batch)
    tx = optimizer(config.optim, schedule)
    inputs = {
        "image": ((SIZE, SIZE, 3), jnp.uint8),
        "label": ((), jnp.int32),
        "position": ((), jnp.uint32),
        "weight": ((), jnp.float32),
    }
    rows = {
        name: jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=split(mesh))
        for name, (shape, dtype) in inputs.items()
    }
    step = compiled_train_step(config, model, tx, schedule, mesh)
    seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=replicated(mesh))
    return step.lower(abstract_state(model, tx, config, mesh), seed, rows)


def textbook_step(mesh: Mesh) -> Any:
    """Lowers the textbook's step, on normalised images and with statistics of the global batch."""
    model, tx = TEXTBOOK["resnet50"](dtype=jnp.bfloat16), optax.sgd(0.1, 0.9, nesterov=True)
    batch = IMAGES * mesh.size
    images = jax.ShapeDtypeStruct((batch, SIZE, SIZE, 3), jnp.bfloat16, sharding=split(mesh))
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=split(mesh))
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)), train=False)
    )
    state = variables, jax.eval_shape(tx.init, variables["params"])
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)), state
    )
    return jax.jit(plain_step(model, tx), donate_argnums=(0, 1)).lower(*state, images, labels)


def measure(lowered: Any, title: str, gigabytes: float) -> dict[str, float]:
    """Compiles a step, prints its traffic and memory, and returns the figures."""
    figures, collectives, kernels = compile_facts(lowered, IMAGES, gigabytes)
    values = ", ".join(f"{name} {value:,.2f}" for name, value in figures.items())
    print(f"{title}\n  {values}; {collectives}")
    for kernel, size, count in kernels:
        print(f"  {size:8.1f} MB/image in {count:4d} x {kernel}", flush=True)
    return figures


def work(name: str) -> None:
    """Measures one target in the environment of its platform; its last line is for the parent."""
    topology, compared = TARGETS[name]
    mesh, gigabytes = absent_devices(topology), DEVICES[topology.partition(":")[0]].gigabytes
    figures = measure(our_step(mesh), f"{name}, {mesh.size} devices, ours", gigabytes)
    if compared:
        textbook = measure(textbook_step(mesh), f"{name}, {mesh.size} devices, textbook", gigabytes)
        figures["bytes_vs_textbook"] = (
            figures["megabytes_per_image"] / textbook["megabytes_per_image"]
        )
        figures |= {f"textbook_{key}": value for key, value in textbook.items()}
    print(json.dumps({f"{name}_{key}": value for key, value in figures.items()}))


def compiler_python(platform: str) -> str:
    """Returns the path of a Python with the platform's compiler.

    It has the versions of flaxres's requirements that run here, in an environment under the user's
    cache, which is created on first use.
    """
    folder = cache_folder() / "benchmarks" / f"aot_{platform}"
    python, ready = folder / "bin" / "python", folder / "ready"
    requirements = importlib.metadata.requires("flaxres") or []
    names = [
        re.split(r"[^\w-]", requirement)[0]
        for requirement in requirements
        if "extra ==" not in requirement
    ]
    versions = {name: importlib.metadata.version(name) for name in names if name != "jax"}
    wanted = [
        *COMPILERS[platform],
        *(f"{name}=={version}" for name, version in versions.items()),
    ]
    if not ready.exists() or ready.read_text().split() != wanted:
        print(f"creating an environment with {', '.join(wanted)} in {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "-q", *wanted], check=True, stdout=sys.stderr
        )
        ready.write_text("\n".join(wanted))
    return str(python)


def compile_for(name: str, quiet: bool) -> dict[str, float]:
    """Runs `work` in the environment of its platform and returns its figures."""
    platform = platform_of(TARGETS[name][0])
    words = [compiler_python(platform), "-m", "benchmarks.aot", "--worker", name]
    root = pathlib.Path(__file__).parents[1]
    environment = (
        os.environ | ENVIRONMENT[platform] | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    )
    result = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(words)} ended with code {result.returncode}:\n{result.stderr}")
    *lines, last = result.stdout.splitlines()
    if not quiet:
        print("\n".join(lines), flush=True)
    figures: dict[str, float] = json.loads(last)
    return figures


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--platform", choices=(*COMPILERS, "all"), default="all")
    parser.add_argument(
        "--topology",
        nargs="+",
        choices=TARGETS,
        metavar="NAME",
        help=f"of {', '.join(TARGETS)}; default: those with the textbook",
    )
    parser.add_argument("--worker", choices=TARGETS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        work(chosen.worker)
        return
    names = chosen.topology or [name for name, (_, compared) in TARGETS.items() if compared]
    figures: dict[str, float] = {}
    for name in names:
        if chosen.platform in (platform_of(TARGETS[name][0]), "all"):
            figures |= compile_for(name, chosen.json)
    command.show(figures, chosen.json, ",.3f")


if __name__ == "__main__":
    main()
