"""Runs the tests of native code under a sanitizer of the C++ compiler.

    python -m tools.sanitized address [--shapes 10]
    python -m tools.sanitized thread

`address` finds accesses outside of arrays and undefined behaviour, `thread` accesses of two threads
that nothing orders. The code is compiled by g++ (or the one that $CXX names) with the sanitizer,
into a folder of its own, and `tests/ops/test_random_shapes.py` calls it with so many random shapes
of each operation, in every dtype that the processor computes. Programs with the faults that the
sanitizer looks for must fail first.
"""

import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
from typing import NamedTuple

from benchmarks import command

ROOT = pathlib.Path(__file__).parents[1]
TESTS = "tests/ops/test_random_shapes.py"
REPORT = "report"


class Sanitizer(NamedTuple):
    """A sanitizer of g++.

    Attributes:
      flags: of the compiler.
      library: is loaded before Python, which is compiled without it.
      options: the variable that holds its options, and these.
      faults: functions `int fault()` that it refuses.
    """

    flags: str
    library: str
    options: tuple[str, str]
    faults: tuple[str, ...]


SANITIZERS = {
    "address": Sanitizer(
        "-fsanitize=address,undefined -fno-sanitize-recover=all",
        "libasan.so",
        # Python frees little before it ends.
        ("ASAN_OPTIONS", "detect_leaks=0"),
        (
            "int fault() { int* x = new int[8]; int y = x[8]; delete[] x; return y; }",
            "int fault() { volatile int x = 2147483647; return x + 1; }",
        ),
    ),
    "thread": Sanitizer(
        "-fsanitize=thread",
        "libtsan.so",
        # XLA's libraries are compiled without it.
        ("TSAN_OPTIONS", "ignore_noninstrumented_modules=1 suppressions={folder}/suppressions"),
        ("int fault() { int x = 0; std::thread t([&] { ++x; }); ++x; t.join(); return x; }",),
    ),
}


def environment(sanitizer: Sanitizer, folder: pathlib.Path) -> dict[str, str]:
    """Returns the variables of a process whose native code has the sanitizer."""
    compiler = shlex.split(os.environ.get("CXX", "g++"))

    def found(library: str) -> str:
        named = [*compiler, f"-print-file-name={library}"]
        return subprocess.run(named, capture_output=True, text=True, check=True).stdout.strip()

    name, options = sanitizer.options
    suppressions = folder / "suppressions"
    # A task reads its own copy of what it captured, which XLA's pool has handed over.
    suppressions.write_text("race:Schedule<flaxres\n")
    return os.environ | {
        "CXX": shlex.join([*compiler, "-g", *sanitizer.flags.split()]),
        # The sanitizer looks for C++'s exceptions when it starts; Python itself has none.
        "LD_PRELOAD": f"{found(sanitizer.library)} {found('libstdc++.so')}",
        # pytest would keep what is written to stderr.
        name: f"{options.format(folder=folder)} log_path={folder / REPORT}",
        "XDG_CACHE_HOME": str(folder),
        "FLAXRES_TESTS_COMPILED": str(folder / "compiled"),
        "JAX_PLATFORMS": "cpu",
        # XLA's pool gets more threads than a small machine has cores.
        "NPROC": "4",
    }


def finds(fault: str, variables: dict[str, str], folder: pathlib.Path) -> bool:
    """Returns whether a Python process that calls a faulty function fails."""
    source, library = folder / "fault.cc", folder / "fault.so"
    source.write_text(f'#include <thread>\nextern "C" {fault}\n')
    build = [*shlex.split(variables["CXX"]), "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run(build, check=True)
    program = f"import ctypes; ctypes.CDLL({str(library)!r}).fault()"
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True)
    for report in folder.glob(f"{REPORT}.*"):
        report.unlink()
    return done.returncode != 0


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("sanitizer", choices=SANITIZERS)
    parser.add_argument("--shapes", type=int, default=5, help="random shapes of each operation")
    chosen = parser.parse_args()
    sanitizer = SANITIZERS[chosen.sanitizer]
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        variables = environment(sanitizer, folder) | {"FLAXRES_RANDOM_SHAPES": str(chosen.shapes)}
        if not all(finds(fault, variables, folder) for fault in sanitizer.faults):
            raise SystemExit(f"the {chosen.sanitizer} sanitizer does not work on this machine")
        tests = [sys.executable, "-m", "pytest", "-n0", "-m", "", "-p", "no:cacheprovider", TESTS]
        done = subprocess.run(tests, cwd=ROOT, env=variables, check=False)
        for report in sorted(folder.glob(f"{REPORT}.*")):
            print(report.read_text(), file=sys.stderr)
    figures = {"sanitizer": chosen.sanitizer, "exit_code": done.returncode}
    command.show(figures, chosen.json, "")
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
