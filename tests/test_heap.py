"""The heap has room for the temporaries of a step, and does not grow from step to step."""

import pathlib
import platform
import subprocess
import sys

import pytest

from flaxres.heap import Room

GLIBC = platform.libc_ver()[0] == "glibc"

# Allocations of a training: images for each step, which are freed one step later, aligned
# temporaries while it runs, and something that stays.
STEPS = """
import ctypes, re, sys
from flaxres import heap

heap.keep()
heap.dispatch_inline()
libc, size, room = heap._libc(), 100 << 20, heap.Room()
if sys.argv[1] == "room":
    room.widen(size)  # else it does nothing

def mebibytes():
    return int(re.search(r"VmData:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024

grown, held, block = [], None, ctypes.c_void_p()
for step in range(12):
    before, images = mebibytes(), libc.malloc(9 << 20)
    with room:
        error = libc.posix_memalign(
            ctypes.byref(block), ctypes.c_size_t(64), ctypes.c_size_t(size)
        )
        assert not error
        libc.free(block)
    libc.free(held)
    held = images
    libc.malloc(1 << 20)
    grown.append(mebibytes() - before)
print(*grown)
"""


def test_a_room_does_nothing_where_memory_is_not_kept() -> None:
    room = Room()
    room.widen(1 << 30)
    assert room.size == 0
    with room:
        pass
    room.release()


def run(program: str, *words: str) -> list[float]:
    """Runs a program in a process of its own, and returns the numbers of its last line."""
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_steps_with_room_take_no_new_memory() -> None:
    grown = run(STEPS, "room")
    assert sum(growth > 90 for growth in grown) <= 1, grown
    print("without room:", run(STEPS, "no room"))  # another glibc may find the block


NESTED = """
from flaxres import heap
heap.keep()
heap.dispatch_inline()
room = heap.Room()
room.widen(100 << 20)
sizes = [room.size]
with room, room:  # nothing is freed twice
    room.widen(200 << 20)
with room:
    pass
sizes.append(room.size)
room.widen(1 << 20)
sizes.append(room.size)
room.release()
room.release()
with room:
    pass
print(*sizes, room.size)
"""


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_a_room_grows_and_is_given_back() -> None:
    first, wider, same, released = run(NESTED)
    assert first < wider == same
    assert released == 0


# A network whose temporaries are large beside its weights, and what else the run allocates.
TRAINING = """
import re, sys
from flaxres.cli import main
from flaxres.training.stepper import Stepper

def gigabytes():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1e6

real, sizes = Stepper.__call__, []
def measured(self, *arguments):
    result = real(self, *arguments)
    sizes.append(gigabytes())
    sizes.append(self.room.size / 1e9)
    return result
Stepper.__call__ = measured
words = ["train", "--config", "digits", "--workdir", sys.argv[1], "--data.data-dir", sys.argv[2]]
words += ["--data.image-size", "40", "--data.eval-size", "40", "--data.eval-resize", "40"]
words += ["--train.batch-size", "256", "--train.eval-batch-size", "100", "--train.steps", "8"]
words += ["--train.steps-per-dispatch", "1", "--train.devices", "1", "--data.resident", "False"]
code = main([*words, "--train.tensorboard", "False", "--model.dtype", "float32"])
print(*sizes)
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_a_run_holds_one_copy_of_its_temporaries(data_dir: str, tmp_path: pathlib.Path) -> None:
    sizes = run(TRAINING, str(tmp_path), data_dir)
    memory, (room, *_) = sizes[::2], sizes[1::2]
    assert room > 0.5
    assert max(memory) < 1.9 * room, sizes  # what else is in memory, 0.4 GB, and one copy
