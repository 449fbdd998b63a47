"""The process around a command: exit codes, memory, caches, and joining other processes."""

import contextlib
import errno
import importlib.util
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from flaxres.cli._options import value_of
from flaxres.errors import InputError, WriteError, missing_extra

EXIT_REFUSED, EXIT_UNWRITTEN = 2, 74
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h


def refusing(function: Callable[[], Any]) -> int:
    """Runs `function`; an InputError becomes one line on stderr and exit code 2, what can't be written one and 74, an early Ctrl-C one and 130."""
    try:
        function()
    except KeyboardInterrupt:
        print(
            "flaxres: interrupted before training began; nothing is lost, nothing new was saved",
            file=sys.stderr,
            flush=True,
        )
        os._exit(
            130
        )  # the compiler's threads may still run, and an orderly exit would crash over them
    except InputError as error:
        print(f"flaxres: {' '.join(str(error).split())}", file=sys.stderr)
        return ended(EXIT_REFUSED)
    except ModuleNotFoundError as error:
        if (refusal := missing_extra(error)) is None:
            return crashed()
        print(f"flaxres: {refusal}", file=sys.stderr)
        return ended(EXIT_REFUSED)
    except FloatingPointError as error:
        print(f"flaxres: {error}", file=sys.stderr)
        return ended(1)
    except OSError as error:
        if not isinstance(error, WriteError) and error.errno not in FULL:
            return crashed()
        fix = (
            ""
            if isinstance(error, WriteError)
            else "; what was saved is intact: make room and start the same command again"
        )
        print(f"flaxres: {error}{fix}", file=sys.stderr, flush=True)
        os._exit(
            EXIT_UNWRITTEN
        )  # threads that write would complain about the end of the interpreter
    except Exception:
        return crashed()
    return 0


def crashed() -> int:
    """Called while an exception is handled: raises it again, or where others wait for this process, prints it and leaves."""
    if not several():
        raise
    traceback.print_exc()
    return ended(1)


def several() -> bool:
    import jax

    return jax.distributed.is_initialized()


def ended(code: int) -> int:
    """The exit code; one of several processes leaves at once, since an orderly exit would wait for the others, who wait for it."""
    if several():
        from flaxres.training.hosts import leader

        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(2 if leader() else 0)  # the others' connection to the first process ends with it
        os._exit(code)
    return code


def cpus_alone() -> bool:
    """Whether JAX has no accelerator, before it is asked."""
    return os.environ.get("JAX_PLATFORMS", "") == "cpu" or not any(
        importlib.util.find_spec(plugin) for plugin in ("jax_plugins", "libtpu")
    )


def keep_memory() -> None:
    """Has glibc keep what XLA's CPU client frees. It allocates the temporaries of each step anew, and the kernel would otherwise take such large
    blocks back and zero each page again: a third of a CIFAR step. Only where JAX has no accelerator, and before JAX's threads start.
    """
    import ctypes

    if not cpus_alone():
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for setting, value in ((M_TRIM_THRESHOLD, -1), (M_MMAP_MAX, 0), (M_ARENA_MAX, 1)):
            mallopt(setting, value)


def keep_compiled() -> None:
    """Keeps compiled programs in the user's cache folder, which only the user may enter, since what lies there is run."""
    import jax

    from flaxres.cache import private_folder

    if getattr(jax.config, "jax_compilation_cache_dir", None):
        return
    try:
        folder = private_folder("compiled")
    except (OSError, RuntimeError) as error:  # not writable; no home
        print(f"flaxres: compiled programs are not kept: {error}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def use_compiler() -> None:
    """Convolutions that this machine's C++ compiler makes, where JAX has CPUs alone and the environment has no FLAXRES_NATIVE_CONVOLUTIONS=0."""
    if not cpus_alone() or os.environ.get("FLAXRES_NATIVE_CONVOLUTIONS") == "0":
        return
    from flaxres.ops.native import use_native_convolutions

    try:
        use_native_convolutions()
    except InputError as error:
        print(f"flaxres: {error}", file=sys.stderr)


def silence() -> None:
    """Keeps the libraries' chatter off the terminal; warnings and errors stay."""
    import logging

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("absl").setLevel(logging.ERROR)


def joined(arguments: Sequence[str]) -> list[str]:
    """Joins the processes that `--coordinator HOST:PORT --processes N --process I` or a cluster's environment name; returns the other arguments."""
    values: list[str | None] = []
    rest = list(arguments)
    for name in ("--coordinator", "--processes", "--process"):
        value, rest = value_of(rest, name)
        if value is not None and name != "--coordinator" and not value.isdigit():
            raise InputError(f"{name}={value!r}: the rule is a whole number, >= 0")
        values.append(value)
    keep_memory()
    if not {"-h", "--help"} & set(rest):
        from flaxres.training.hosts import join

        coordinator, processes, process = values
        join(
            coordinator,
            None if processes is None else int(processes),
            None if process is None else int(process),
        )
        if not several():  # each process would have kept another part; and programs for several devices have XLA's convolutions
            keep_compiled()
            use_compiler()
    return rest
