"""The heap has room for the temporaries of a step, and does not grow from step to step."""

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
    room.widen(1 << 40)  # more than there is
    with room:
        pass


@pytest.mark.skipif(not GLIBC, reason="another C library")
@pytest.mark.parametrize("kind", ["room", "no room"])
def test_steps_with_room_take_no_new_memory(kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STEPS, kind], check=True, capture_output=True, text=True
    )
    grown = [int(word) for word in done.stdout.split()]
    copies = sum(growth > 90 for growth in grown)
    assert copies <= 1 if kind == "room" else copies > 2, grown
