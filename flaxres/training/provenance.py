"""Where a checkpoint comes from: the code, the libraries, the data and the machine, kept beside it."""

import functools
import hashlib
import importlib.metadata
import pathlib
import platform
import sys
from typing import Any

import jax

from flaxres.ops import native
from flaxres.training.run import Run

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "array-record"),
    *("numpy", "pillow", "simplejpeg", "opencv-python-headless"),
)


@functools.cache
def code_digest() -> str:
    """SHA-256 over this package's code."""
    root, digest = pathlib.Path(__file__).parents[1], hashlib.sha256()
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.cc")]):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def convolutions(run: Run) -> str:
    """Whose they are: the C++ compiler's where the run may call those that it made, else XLA's."""
    native_ones = (
        run.mesh.size == 1
        and jax.default_backend() == "cpu"
        and run.config.model.compute_dtype == "float32"
    )
    return (native_ones and native.compiled_by) or "XLA"


def provenance(run: Run) -> dict[str, Any]:
    """What a checkpoint of `run` carries, as JSON.

    `data` and `classes` are compared on a resume, the rest is there to be read.

    `seconds` (trained, of these stalled), `left_out` (steps that were not finite) and `skipped` (records that could not be decoded) grow.
    """
    import flaxres

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "?"
    return {
        "flaxres": flaxres.__version__,
        "code": code_digest(),
        "python": platform.python_version(),
        "packages": versions,
        "command": sys.argv,
        "devices": f"{run.mesh.size} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "convolutions": convolutions(run),
        "data": run.train.digest,
        "evaluation": f"{run.evaluation.name} {len(run.evaluation)} {run.evaluation.digest}",
        "classes": run.train.class_digest,
        "seconds": (0.0, 0.0),
        "left_out": 0,
        "skipped": [],
    }
