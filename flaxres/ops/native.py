"""Compiles C++ convolutions and norms for CPUs, and tells which programs can call them."""

import contextvars
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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.interpreters import mlir
from jaxlib.version import __version__ as jaxlib_version

from flaxres.cache import private_folder
from flaxres.errors import InputError

HERE = pathlib.Path(__file__).parent
HEADERS = ("native.h", "outputs.h")
# The operations of each source file.
SOURCES = {
    "convolution.cc": ("flaxres_convolution", "flaxres_kernel_gradient"),
    "inference.cc": ("flaxres_fused_convolution",),
    "pool.cc": ("flaxres_pool", "flaxres_spread"),
    "norm.cc": ("flaxres_norm", "flaxres_norm_gradient", "flaxres_norm_sum_gradient"),
}
# The second only where the processor multiplies it (AVX512_BF16).
DTYPES = ("float32", "bfloat16")
# Those of 8-bit images, by the dtypes of their results and shortcuts, only where the processor
# multiplies these (AVX512_VNNI).
QUANTISED = tuple(
    f"flaxres_fused_convolution_uint8_{result}_{shortcut}"
    for result in ("uint8", "float32")
    for shortcut in ("uint8", "float32")
)
OPTIONS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-shared", "-fPIC")
COMPILERS = ("c++", "g++", "clang++")
SECONDS = 300
FIX = (
    "install g++ or clang++ or name a compiler in CXX, "
    "or go on with XLA's convolutions, which are slower"
)

_left_out = contextvars.ContextVar("left_out", default=False)
compiled_by = ""
"""First line of the compiler's `--version`; empty until `use_native_convolutions` is called."""
dtypes: tuple[str, ...] = ()
"""Those of `DTYPES` that the code computes on this processor, once it is compiled."""


def use_native_convolutions() -> str:
    """Computes convolutions on CPUs with C++ code, in networks traced from now on.

    Those in float32, and in bfloat16 where the processor multiplies it (AVX512_BF16: AMD since Zen
    4, Intel since Cooper Lake). Batch norms in training, max pooling and the networks of
    `flaxres.inference` are C++ code, too. On first use it compiles the code, which takes about
    fifteen seconds, and keeps the result in the user's cache folder. The compiler is `$CXX`, `c++`,
    `g++` or `clang++`. A training step of ResNet-20 is 1.6 times as fast with it, one of ResNet-50
    1.1 times (two cores of an AMD EPYC).
    `train.py` and the `flaxres` commands that train, evaluate or measure call this function on
    machines without an accelerator.

    The code replaces convolutions of odd size with at least 12 output channels, without groups or
    dilation, in programs for one CPU device and within `jax.shard_map`. Results differ from XLA's
    by the order of sums. Derivatives of any order work.

    Returns:
      The compiler's name and version.

    Raises:
      InputError: there is no compiler, or it fails. Nothing has changed then.

    Examples:
      >>> import flaxres
      >>> compiler = flaxres.use_native_convolutions()
    """
    global compiled_by, dtypes
    compiled_by, dtypes, *_ = load()
    return compiled_by


class Loaded(NamedTuple):
    """The native code in this process.

    Attributes:
      compiler: name and version of the compiler.
      dtypes: those that the code computes.
      eight_bits: whether it computes convolutions of 8-bit images for inference.
      block: maps a number of output channels to that in a block of a kernel.
    """

    compiler: str
    dtypes: tuple[str, ...]
    eight_bits: bool
    block: Callable[[int], int]


@functools.cache
def load() -> Loaded:
    """Compiles the code if it is not in the cache, and registers it with XLA, once a process."""
    compiler = find_compiler()
    version = said([*compiler, "--version"]).partition("\n")[0] or compiler[0]
    with ThreadPoolExecutor(len(SOURCES)) as threads:
        libraries = list(threads.map(lambda source: loaded(source, compiler, version), SOURCES))
    computed: tuple[str, ...] = DTYPES
    for functions, targets in zip(libraries, SOURCES.values(), strict=True):
        computed = tuple(d for d in computed if hasattr(functions, f"{targets[0]}_{d}"))
        for name in (f"{target}_{dtype}" for target in targets for dtype in computed):
            handler = jax.ffi.pycapsule(getattr(functions, name))
            jax.ffi.register_ffi_target(name, handler, platform="cpu")
    inference = dict(zip(SOURCES, libraries, strict=True))["inference.cc"]
    quantised = [getattr(inference, name) for name in QUANTISED if hasattr(inference, name)]
    for name, function in zip(QUANTISED, quantised, strict=False):
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(function), platform="cpu")
    block = inference.flaxres_block
    block.restype, block.argtypes = ctypes.c_int64, [ctypes.c_int64]
    return Loaded(version, computed, bool(quantised), block)


def computes_eight_bits() -> bool:
    """Returns whether native code is in use, and computes convolutions of 8-bit images."""
    return bool(compiled_by) and load().eight_bits


def block(channels: int) -> int:
    """Returns the number of output channels in a block of a packed kernel, on this processor."""
    return int(load().block(channels))


def loaded(source: str, compiler: Sequence[str], version: str) -> ctypes.CDLL:
    """Compiles a source file, if it is not in the cache, and loads it."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return ctypes.CDLL(str(library(source, compiler, version, private_folder("native"))))
        except (OSError, RuntimeError):  # read-only, full, mounted noexec, or no home
            try:
                made = library(source, compiler, version, pathlib.Path(scratch))
                return ctypes.CDLL(str(made))
            except OSError as error:
                raise InputError(
                    f"what the C++ compiler {compiler[0]} made can't be written or loaded "
                    f"({error}): {FIX}"
                ) from error


def library(
    source: str, compiler: Sequence[str], version: str, folder: pathlib.Path
) -> pathlib.Path:
    """Returns the shared library of a source for this compiler and this processor, in `folder`.

    It is compiled if it is missing or damaged.
    """
    options = [
        *OPTIONS,
        processor_option(),
        f"-I{jax.ffi.include_dir()}",
    ]
    texts = [HERE.joinpath(name).read_text() for name in (*HEADERS, source)]
    origin = [*texts, version, *compiler, *options, jaxlib_version, processor()]
    path = folder / f"{hashlib.sha256(chr(0).join(origin).encode()).hexdigest()[:32]}.so"
    if not sound(path):
        build(source, compiler, options, path)
    return path


def find_compiler() -> list[str]:
    """Returns the compiler's command line: `$CXX`, or the first of `COMPILERS` installed."""
    if named := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(named[0]) is None:
            raise InputError(f"CXX={os.environ['CXX']!r} is not a program on this machine: {FIX}")
        return named
    for name in COMPILERS:
        if path := shutil.which(name):
            return [path]
    raise InputError(f"no C++ compiler ({', '.join(COMPILERS)}) on this machine: {FIX}")


def said(command: Sequence[str]) -> str:
    """Runs a command of the compiler and returns its output.

    Raises:
      InputError: the command fails; names the first error that it printed.
    """
    try:
        environment = os.environ | {"LC_ALL": "C"}
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"the C++ compiler {command[0]} does not run ({error}): {FIX}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        complaint = next((line for line in lines if "error" in line), lines[0])
        raise InputError(f"the C++ compiler {command[0]} fails ({complaint}): {FIX}")
    return done.stdout


def processor_option() -> str:
    """Returns the compiler's option for this processor's instructions."""
    return "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"


def processor() -> str:
    """Returns the processor's features: code compiled for others may crash the process."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next(
        (line for line in lines if line.startswith(("flags", "Features"))), platform.processor()
    )


def build(
    source: str, compiler: Sequence[str], options: Sequence[str], library: pathlib.Path
) -> None:
    """Compiles a source to `library`, and writes its digest beside it."""
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        made, digest = pathlib.Path(scratch) / library.name, pathlib.Path(scratch) / "digest"
        said([*compiler, *options, "-w", str(HERE / source), "-o", str(made)])
        digest.write_text(hashlib.sha256(made.read_bytes()).hexdigest())
        made.replace(library)
        digest.replace(library.with_suffix(".sha256"))


def sound(library: pathlib.Path) -> bool:
    """Returns whether the file matches its digest: loading a truncated one may crash."""
    try:
        return (
            hashlib.sha256(library.read_bytes()).hexdigest()
            == library.with_suffix(".sha256").read_text()
        )
    except OSError:
        return False


def computes(dtype: Any) -> bool:
    """Returns whether native code is in use, and computes this dtype."""
    return bool(compiled_by) and not _left_out.get() and str(np.dtype(dtype)) in dtypes


def left_out(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that is traced without native code, for programs of several devices.

    XLA can't divide native calls among devices. Their forms in JAX's operations are those of
    programs that never use native code; without this they would be those that replace single calls.
    """

    @functools.wraps(function)
    def traced(*arguments: Any) -> Any:
        token = _left_out.set(True)
        try:
            return function(*arguments)
        finally:
            _left_out.reset(token)

    return traced


def callable_in(context: mlir.LoweringRuleContext) -> bool:
    """Returns whether the program being lowered can make native calls.

    It must stay in this process. It must also see the whole of each array, since XLA can't
    partition an operation that it does not know.
    """
    module = context.module_context
    if not compiled_by or getattr(module.lowering_parameters, "for_export", False):
        return False
    axes: Any = module.axis_context
    if (count := getattr(axes, "num_devices", None)) is not None:
        return bool(count == 1)
    manual, mesh = getattr(axes, "manual_axes", None), getattr(axes, "mesh", None)
    return manual is not None and mesh is not None and set(manual) == set(mesh.axis_names)
