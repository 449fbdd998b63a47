"""Convolutions for CPUs in C++ (native.cc), made by this machine's own compiler, and when a program can call them."""

import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
from jax.interpreters import mlir

from flaxres.cache import private_folder
from flaxres.errors import InputError

SOURCE = pathlib.Path(__file__).with_name("native.cc")
TARGETS = ("flaxres_convolution", "flaxres_kernel_gradient")
OPTIONS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-shared", "-fPIC")
COMPILERS = ("c++", "g++", "clang++")
SECONDS = 300
FIX = "install g++ or clang++ or name a compiler in CXX, or go on with XLA's convolutions, which are slower"

compiled_by = ""
"""The first line of the compiler's `--version`, once its convolutions are in use; empty before."""


def use_native_convolutions() -> str:
    """Has networks that are traced from now on compute float32 convolutions on CPUs by code that this machine's C++ compiler makes of flaxres's own.

    A training step of ResNet-20 is 1.6 times as fast with it, one of ResNet-50 1.1 times (two cores of an AMD EPYC). `train.py` and those `flaxres`
    commands that train, evaluate and measure call it where there is no accelerator. The compiler is `$CXX`, `c++`, `g++` or `clang++`; it takes some
    5 s, once: what it makes is kept in the user's cache folder. The convolutions are those of odd size with 12 channels out or more, without groups
    or dilation, in programs for one CPU device and within `jax.shard_map`. Results differ from XLA's by the order of sums. Derivatives of any order
    are covered.

    Returns the compiler's name and version. Raises InputError where there is no compiler, or where it fails; nothing has changed then.
    """
    global compiled_by
    compiled_by = load()
    return compiled_by


@functools.cache
def load() -> str:
    """Compiles where need be, and makes XLA know what came of it, once a process."""
    compiler = find_compiler()
    version = said([*compiler, "--version"]).partition("\n")[0] or compiler[0]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            functions = ctypes.CDLL(str(library(compiler, version, private_folder("native"))))
        except (OSError, RuntimeError):  # not writable, full, or nothing there may be run; no home
            try:
                functions = ctypes.CDLL(str(library(compiler, version, pathlib.Path(scratch))))
            except OSError as error:
                raise InputError(f"what the C++ compiler {compiler[0]} made can't be written or loaded ({error}): {FIX}") from error
    for target in TARGETS:
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(functions, target)), platform="cpu")
    return version


def library(compiler: Sequence[str], version: str, folder: pathlib.Path) -> pathlib.Path:
    """The file in `folder` that this compiler makes for this processor, made if it is not there or not whole."""
    options = [*OPTIONS, "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native", f"-I{jax.ffi.include_dir()}"]
    origin = [SOURCE.read_text(), version, *compiler, *options, jax.lib.__version__, processor()]
    path = folder / f"{hashlib.sha256(chr(0).join(origin).encode()).hexdigest()[:32]}.so"
    if not sound(path):
        build(compiler, options, path)
    return path


def find_compiler() -> list[str]:
    if named := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(named[0]) is None:
            raise InputError(f"CXX={os.environ['CXX']!r} is not a program on this machine: {FIX}")
        return named
    for name in COMPILERS:
        if found := shutil.which(name):
            return [found]
    raise InputError(f"no C++ compiler ({', '.join(COMPILERS)}) on this machine: {FIX}")


def said(command: Sequence[str]) -> str:
    """What a command of the compiler prints; raises InputError with the first error that it names where it fails."""
    try:
        environment = os.environ | {"LC_ALL": "C"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"the C++ compiler {command[0]} does not run ({error}): {FIX}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        complaint = next((line for line in lines if "error" in line), lines[0])
        raise InputError(f"the C++ compiler {command[0]} fails ({complaint}): {FIX}")
    return done.stdout


def processor() -> str:
    """What the processor can do: code made for another one may end the process."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def build(compiler: Sequence[str], options: Sequence[str], library: pathlib.Path) -> None:
    """Compiles to `library`, and writes its digest beside it."""
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        made, digest = pathlib.Path(scratch) / library.name, pathlib.Path(scratch) / "digest"
        said([*compiler, *options, "-w", str(SOURCE), "-o", str(made)])
        digest.write_text(hashlib.sha256(made.read_bytes()).hexdigest())
        made.replace(library)
        digest.replace(library.with_suffix(".sha256"))


def sound(library: pathlib.Path) -> bool:
    """Whether the file is there as it was written; one cut short may end the process that loads it."""
    try:
        return hashlib.sha256(library.read_bytes()).hexdigest() == library.with_suffix(".sha256").read_text()
    except OSError:
        return False


def callable_in(context: mlir.LoweringRuleContext) -> bool:
    """Whether a program may call them: one that stays in this process, and that sees all of its arrays, since XLA can't divide among devices what it
    doesn't know.
    """
    module = context.module_context
    if not compiled_by or getattr(module.lowering_parameters, "for_export", False):
        return False
    axes: Any = module.axis_context
    if (count := getattr(axes, "num_devices", None)) is not None:
        return bool(count == 1)
    manual, mesh = getattr(axes, "manual_axes", None), getattr(axes, "mesh", None)
    return manual is not None and mesh is not None and set(manual) == set(mesh.axis_names)
