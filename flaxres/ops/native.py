"""Compiles C++ convolutions and norms for CPUs, and tells which programs can call them."""

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
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.interpreters import mlir
from jaxlib.version import __version__ as jaxlib_version

from flaxres.cache import private_folder
from flaxres.errors import InputError

HERE = pathlib.Path(__file__).parent
HEADERS = ("native.h", "outputs.h")
# The operations of each source file, for training and for inference.
SOURCES: dict[str, dict[str, tuple[str, ...]]] = {
    "training": {
        "convolution.cc": ("convolution", "kernel_gradient"),
        "pool.cc": ("pool", "spread"),
        "norm.cc": (
            "norm_moments",
            "norm",
            "norm_slopes",
            "norm_sum_slopes",
            "norm_gradient",
        ),
    },
    "inference": {"inference.cc": ("fused_convolution",)},
}
# The dtypes of images, and the instructions that they need, as /proc/cpuinfo names them.
INSTRUCTIONS = {"float32": "", "bfloat16": "avx512_bf16", "uint8": "avx512_vnni"}
# The dtypes of results and shortcuts where the images are of 8 bits.
QUANTISED = tuple(f"uint8_{y}_{z}" for y in ("uint8", "float32") for z in ("uint8", "float32"))
OPTIONS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-shared", "-fPIC")
COMPILERS = ("c++", "g++", "clang++")
SECONDS = 300
UNFINISHED = "unfinished-"
FIX = (
    "install g++ or clang++ or name a compiler in CXX, "
    "or go on with XLA's convolutions, which are slower"
)

compiled_by = ""
"""First line of the compiler's `--version`; empty until `use_native_convolutions` is called."""
_begun: tuple[Future[str], Callable[[InputError], None]] | None = None
_settling = threading.Lock()


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
    dilation, in programs for one CPU device, within `jax.shard_map`, and in the steps of
    `flaxres.fit` and `flaxres.evaluate`, where each device computes its images. Call this function
    in all processes of a run or in none. Results differ from XLA's by the order of sums.
    Derivatives of any order work.

    Returns:
      The compiler's name and version.

    Raises:
      InputError: there is no compiler, or it fails. Nothing has changed then.

    Examples:
      >>> import flaxres
      >>> compiler = flaxres.use_native_convolutions()
    """
    global compiled_by
    load("training", "float32")
    compiled_by = compiler_and_version()[1]
    return compiled_by


def begin_to_use_native_convolutions(refused: Callable[[InputError], None]) -> None:
    """Calls `use_native_convolutions` in another thread; `compiler` and `computes` wait for it.

    Args:
      refused: is called if it can't be; XLA computes then.
    """
    global _begun
    begun = Future[str]()
    _begun = begun, refused

    def use() -> None:
        try:
            begun.set_result(use_native_convolutions())
        except BaseException as error:  # for the thread that waits
            begun.set_exception(error)

    # A command that is refused ends without it.
    threading.Thread(target=use, daemon=True).start()


def stop_using_native_convolutions() -> None:
    """Undoes `use_native_convolutions` for networks traced from now on."""
    global compiled_by
    compiled_by = ""


def compiler() -> str:
    """Returns the compiler's name and version if native code is in use, else an empty string."""
    global _begun
    with _settling:
        begun, _begun = _begun, None
        if begun is not None:
            future, refused = begun
            try:
                future.result()
            except InputError as error:
                refused(error)
    return compiled_by


@functools.cache
def load(kind: str, dtype: str) -> list[ctypes.CDLL]:
    """Compiles code that is not in the cache, and registers it with XLA, once a process.

    Args:
      kind: of `SOURCES`.
      dtype: of `INSTRUCTIONS`.

    Returns:
      The libraries; none where the processor or the compiler lacks the instructions.

    Raises:
      InputError: there is no compiler, or it fails.
    """
    if INSTRUCTIONS[dtype] not in processor():
        return []
    sources = SOURCES[kind]
    compiler, version = compiler_and_version()
    with ThreadPoolExecutor(len(sources)) as threads:
        libraries = list(
            threads.map(lambda source: loaded(source, dtype, compiler, version), sources)
        )
    dtypes = QUANTISED if dtype == "uint8" else (dtype,)
    for functions, operations in zip(libraries, sources.values(), strict=True):
        for name in (f"flaxres_{operation}_{d}" for operation in operations for d in dtypes):
            if not hasattr(functions, name):
                return []
            handler = jax.ffi.pycapsule(getattr(functions, name))
            jax.ffi.register_ffi_target(name, handler, platform="cpu")
    return libraries


def block(channels: int) -> int:
    """Returns the number of output channels in a block of a packed kernel, on this processor."""
    function = load("training", "float32")[0].flaxres_block
    function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_int64]
    return int(function(channels))


def loaded(source: str, dtype: str, compiler: Sequence[str], version: str) -> ctypes.CDLL:
    """Compiles a source file for a dtype, if it is not in the cache, and loads it."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = private_folder("native")
            return ctypes.CDLL(str(library(source, dtype, compiler, version, folder)))
        except (OSError, RuntimeError):  # read-only, full, mounted noexec, or no home
            try:
                made = library(source, dtype, compiler, version, pathlib.Path(scratch))
                return ctypes.CDLL(str(made))
            except OSError as error:
                raise InputError(
                    f"what the C++ compiler {compiler[0]} made can't be written or loaded "
                    f"({error}): {FIX}"
                ) from error


def library(
    source: str, dtype: str, compiler: Sequence[str], version: str, folder: pathlib.Path
) -> pathlib.Path:
    """Returns the library of a source and a dtype for this compiler and processor, in `folder`.

    It is compiled if it is missing or damaged.
    """
    options = [
        *OPTIONS,
        processor_option(),
        f"-DFLAXRES_{dtype.upper()}",
        f"-I{jax.ffi.include_dir()}",
    ]
    texts = [HERE.joinpath(name).read_text() for name in (*HEADERS, source)]
    origin = [*texts, version, *compiler, *options, jaxlib_version, processor()]
    path = folder / f"{hashlib.sha256(chr(0).join(origin).encode()).hexdigest()[:32]}.so"
    if not sound(path):
        build(source, compiler, options, path)
    return path


def compiler_and_version() -> tuple[list[str], str]:
    """Returns the compiler's command line, and the first line of its `--version`."""
    compiler = find_compiler()
    return compiler, said([*compiler, "--version"]).partition("\n")[0] or compiler[0]


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
    for left in library.parent.glob(f"{UNFINISHED}*"):  # by processes that ended too early
        if time.time() - left.stat().st_mtime > 2 * SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=library.parent) as scratch:
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


def computes(dtype: Any, kind: str = "training") -> bool:
    """Returns whether native code is in use, and computes this dtype.

    Args:
      dtype: of images.
      kind: of `SOURCES`.
    """
    name = str(np.dtype(dtype))
    return bool(name in INSTRUCTIONS and compiler() and load(kind, name))


def callable_in(context: mlir.LoweringRuleContext) -> bool:
    """Returns whether the program being lowered can make native calls.

    It must stay in this process. It must also see the whole of each array, since XLA can't
    partition an operation that it does not know.
    """
    module = context.module_context
    if not compiler() or getattr(module.lowering_parameters, "for_export", False):
        return False
    axes: Any = module.axis_context
    if (count := getattr(axes, "num_devices", None)) is not None:
        return bool(count == 1)
    manual, mesh = getattr(axes, "manual_axes", None), getattr(axes, "mesh", None)
    return manual is not None and mesh is not None and set(manual) == set(mesh.axis_names)
