"""The process around a command: exit codes, memory, caches, and joining other processes."""

import errno
import importlib.util
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from flaxres.cli._words import Option, asks_for_help, value_of
from flaxres.errors import InputError, WriteError, missing_extra
from flaxres.printing import safe_streams, say, say_last

EXIT_REFUSED, EXIT_UNWRITTEN = 2, 74
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def refusing(function: Callable[[], Any]) -> int:
    """Runs a command; its expected errors become one line on stderr and an exit code.

    InputError and a missing extra give 2, a file or output that can't be written 74, a loss that is
    not finite 1, and Ctrl-C before training 130. A reader that closes its pipe early is no error.

    Returns:
      The exit code, 0 without an error.
    """
    with safe_streams() as lost:
        code = _exit_code(function)
        if not code and (reason := lost()):
            say(f"flaxres: the output can't be written ({reason}): make room and start again")
            return EXIT_UNWRITTEN
        return code


def _exit_code(function: Callable[[], Any]) -> int:
    try:
        function()
    except KeyboardInterrupt:
        # The compiler's threads may still run, and an orderly exit would crash over them.
        line = "flaxres: interrupted before training began; nothing is lost, nothing new was saved"
        say_last(line, 130)
    except SystemExit as error:
        if error.code:
            raise
    except InputError as error:
        say(f"flaxres: {' '.join(str(error).split())}")
        return ended(EXIT_REFUSED)
    except ModuleNotFoundError as error:
        if (refusal := missing_extra(error)) is None:
            return crashed()
        say(f"flaxres: {refusal}")
        return ended(EXIT_REFUSED)
    except FloatingPointError as error:
        say(f"flaxres: {error}")
        return ended(1)
    except OSError as error:
        if not isinstance(error, WriteError) and error.errno not in FULL:
            return crashed()
        fix = "; what was saved is intact: make room and start the same command again"
        fix = "" if isinstance(error, WriteError) else fix
        # Threads that write would complain about the end of the interpreter.
        say_last(f"flaxres: {error}{fix}", EXIT_UNWRITTEN)
    except Exception:
        return crashed()
    return 0


def crashed() -> int:
    """Raises the exception that is being handled; one of several processes prints it and ends."""
    if not several():
        raise
    traceback.print_exc()
    return ended(1)


def several() -> bool:
    """Returns True if this process has joined others."""
    if "jax" not in sys.modules:
        return False
    import jax

    return jax.distributed.is_initialized()


def ended(code: int) -> int:
    """Returns the exit code; one of several processes ends at once.

    An orderly exit would wait for the other processes, which wait for this one.
    """
    if several():
        from flaxres.training.hosts import leader

        sys.stdout.flush()
        sys.stderr.flush()
        # The connections of the other processes end with the first one.
        time.sleep(2 if leader() else 0)
        os._exit(code)
    return code


def cpus_alone() -> bool:
    """Returns True if JAX has no accelerator; does not start JAX."""
    return os.environ.get("JAX_PLATFORMS", "") == "cpu" or not any(
        importlib.util.find_spec(plugin) for plugin in ("jax_plugins", "libtpu")
    )


def keep_memory() -> None:
    """Keeps the memory that XLA's CPU client frees, see `flaxres.heap`.

    Does nothing where JAX has an accelerator. Must be called before JAX's threads start.
    """
    from flaxres import heap

    if cpus_alone():
        heap.keep()


def dispatch_inline() -> None:
    """Calls `heap.dispatch_inline` where JAX has only CPUs."""
    from flaxres import heap

    if cpus_alone():
        heap.dispatch_inline()


def keep_compiled() -> None:
    """Keeps compiled programs in the user's cache folder.

    Only the user may enter it, because programs from there are run.
    """
    import jax

    from flaxres.cache import private_folder

    if getattr(jax.config, "jax_compilation_cache_dir", None):
        return
    try:
        folder = private_folder("compiled")
    except (OSError, RuntimeError) as error:  # not writable; no home
        say(f"flaxres: compiled programs are not kept: {error}")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Programs of `flaxres.ops.grouped` are kept too: the address of a function in this process,
    # which the partitioner calls, is left out of their keys.
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)


def use_compiler() -> None:
    """Uses convolutions in C++, compiled on this machine, where JAX has only CPUs.

    They are compiled while the command goes on to the first program that needs them.
    FLAXRES_NATIVE_CONVOLUTIONS=0 in the environment turns them off.
    """
    if not cpus_alone() or os.environ.get("FLAXRES_NATIVE_CONVOLUTIONS") == "0":
        return
    from flaxres.ops.native import begin_to_use_native_convolutions

    begin_to_use_native_convolutions(lambda error: say(f"flaxres: {error}"))


def use_compiler_alike() -> None:
    """Calls `use_compiler` in a process that has joined others; all use XLA if one can't.

    The processes run one program.
    """
    from flaxres.ops import native
    from flaxres.training.hosts import gather, leader, wait_for_all

    def computes(dtype: str) -> bool:
        try:
            return native.computes(dtype)
        except InputError:
            return False

    use_compiler()
    ours = [computes(dtype) for dtype in ("float32", "bfloat16")]
    wait_for_all("native code is compiled")
    if any(theirs != ours for theirs in gather(ours)):
        native.stop_using_native_convolutions()
        if leader():
            say(
                "flaxres: not all processes can use native convolutions in the same dtypes: all "
                "use XLA's, which are slower"
            )


def silence() -> None:
    """Hides the libraries' information lines; warnings and errors stay."""
    import logging

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("absl").setLevel(logging.ERROR)


PROCESSES = (
    Option("--coordinator", "HOST:PORT", "Of the first of several processes; clusters give it."),
    Option("--processes", "N", "Number of processes of the run."),
    Option("--process", "I", "Number of this process, from 0."),
)


def joined(arguments: Sequence[str]) -> list[str]:
    """Joins the other processes of the run, given by `PROCESSES` or by a cluster.

    Returns:
      The other words.
    """
    values: list[str | None] = []
    rest = list(arguments)
    for name in (option.name for option in PROCESSES):
        value, rest = value_of(rest, name)
        if value is not None and name != "--coordinator" and not value.isdigit():
            raise InputError(f"{name}={value!r}: the rule is a whole number, >= 0")
        values.append(value)
    keep_memory()
    if not asks_for_help(rest):
        from flaxres.training.hosts import join

        coordinator, *numbers = values
        join(coordinator, *(None if number is None else int(number) for number in numbers))
        if several():
            use_compiler_alike()
        else:  # each of several processes would keep another part of the programs
            dispatch_inline()
            keep_compiled()
            use_compiler()
    return rest
