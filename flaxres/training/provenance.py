"""Origin and progress of a run, saved beside each checkpoint as JSON."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import sys
from collections.abc import Mapping
from typing import Any

import jax

from flaxres._version import __version__
from flaxres.config.schema import Config
from flaxres.config.settings import SETTINGS, flat
from flaxres.data.digests import file_digest
from flaxres.errors import InputError
from flaxres.ops import native
from flaxres.training.run import Run

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "array-record"),
    *("numpy", "pillow", "simplejpeg", "opencv-python-headless"),
)


# Settings of JAX that change the bits of a run.
JAX_SETTINGS = (
    *("jax_enable_x64", "jax_default_prng_impl", "jax_default_matmul_precision"),
    "jax_threefry_partitionable",
)
# Libraries whose versions may change the bits of a run.
ARITHMETIC = ("jax", "jaxlib", "flax", "numpy")


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Code, libraries, data and machine of a run.

    Attributes:
      flaxres: version of flaxres.
      code: SHA-256 over its code.
      python: version of Python.
      packages: versions of the libraries.
      command: the words that started the process.
      devices: number and kind.
      processes: number.
      convolutions: "XLA", or the compiler that made the C++ ones.
      data: digest of the training split, compared on a resume.
      evaluation: name, size and digest of the evaluation split.
      classes: digest of the classes' names, compared on a resume.
      teacher: digest of the teacher's weights, compared on a resume; '' without a teacher.
      config: the sections of the config, compared on a resume; None in older checkpoints.
      jax_settings: JAX's settings that change bits, compared on a resume; None in older ones.
    """

    flaxres: str
    code: str
    python: str
    packages: dict[str, str]
    command: list[str]
    devices: str
    processes: int
    convolutions: str
    data: str
    evaluation: str
    classes: str
    teacher: str = ""
    config: dict[str, Any] | None = None
    jax_settings: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Progress:
    """Counts that grow over all processes that worked at a run, one after another.

    Attributes:
      seconds: spent in training, and of these, waited for input.
      left_out: steps that were not finite and were left out.
      skipped: numbers of the records that could not be decoded, ascending.
      best: the best value of `train.monitor`; None before the first evaluation.
      waited: evaluations since the best one.
    """

    seconds: tuple[float, float] = (0.0, 0.0)
    left_out: int = 0
    skipped: tuple[int, ...] = ()
    best: float | None = None
    waited: int = 0


def to_json(provenance: Provenance, progress: Progress) -> dict[str, Any]:
    """Returns what a checkpoint carries."""
    return dataclasses.asdict(provenance) | dataclasses.asdict(progress)


def from_json(saved: Mapping[str, Any]) -> tuple[Provenance, Progress]:
    """Reads what a checkpoint carries, also one of an older version of flaxres."""

    def values(section: type) -> dict[str, Any]:
        names = [field.name for field in dataclasses.fields(section)]
        return {name: saved[name] for name in names if name in saved}

    # Checkpoints from before the C++ convolutions don't name them.
    provenance = Provenance(**{"convolutions": "XLA"} | values(Provenance))
    progress = values(Progress)
    for name in ("seconds", "skipped"):
        progress[name] = tuple(progress[name])
    return provenance, Progress(**progress)


def shared_facts(config: Config, provenance: Provenance) -> dict[str, Any]:
    """Returns what must be the same in all processes: settings, versions, code and data."""
    settings = {
        name: repr(value) for name, value in flat(config).items() if not SETTINGS[name].facts.local
    }
    names = ("flaxres", "code", "python", "data", "evaluation", "classes", "teacher")
    facts = {name: getattr(provenance, name) for name in names}
    # Native norms sum other values over the devices than XLA's.
    facts["native convolutions (in all processes or in none)"] = provenance.convolutions != "XLA"
    return settings | (provenance.jax_settings or {}) | provenance.packages | facts


@functools.cache
def code_digest() -> str:
    """Returns the SHA-256 over this package's code."""
    root, digest = pathlib.Path(__file__).parents[1], hashlib.sha256()
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.cc"), *root.rglob("*.h")]):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def package_versions() -> dict[str, str]:
    """Returns the versions of the packages that may change a run, "?" for those not installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "?"
    return versions


def convolutions(run: Run) -> str:
    """Returns the compiler of the C++ convolutions if the run may use them, else "XLA"."""
    may_be_native = jax.default_backend() == "cpu" and native.computes(
        run.config.model.compute_dtype
    )
    return native.compiler() if may_be_native else "XLA"


def _teacher_digest(path: str | None) -> str:
    if path is None:
        return ""
    try:
        return file_digest(pathlib.Path(path))
    except OSError as error:
        raise InputError(
            f"optim.distill_weights={path!r} can't be read ({error.strerror}): give a file of "
            "weights"
        ) from error


def provenance(run: Run) -> Provenance:
    """Returns the provenance of a run on this machine."""
    return Provenance(
        flaxres=__version__,
        code=code_digest(),
        python=platform.python_version(),
        packages=package_versions(),
        command=sys.argv,
        devices=f"{run.mesh.size} x {jax.devices()[0].device_kind}",
        processes=jax.process_count(),
        convolutions=convolutions(run),
        data=run.train.digest,
        evaluation=f"{run.evaluation.name} {len(run.evaluation)} {run.evaluation.digest}",
        classes=run.train.class_digest,
        teacher=_teacher_digest(run.config.optim.distill_weights),
        config=json.loads(json.dumps(dataclasses.asdict(run.config))),
        jax_settings={name: getattr(jax.config, name) for name in JAX_SETTINGS},
    )
