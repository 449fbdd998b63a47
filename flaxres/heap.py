"""The heap of glibc, in which XLA's CPU client allocates the temporaries of each step.

`keep` makes glibc keep the memory that the client frees. Otherwise the kernel would take such large
blocks back and zero each page again, which is a third of a CIFAR step.

A `Room` is free while a step runs, and taken between steps. An aligned allocation needs a free
block that is larger by the alignment, and glibc cuts the rest off. The block that the last step
freed is too small by that rest if other blocks lie beside it, so glibc takes new memory from the
system. It also gives parts of the block to others, such as the compiler of the evaluation. Without
room, a few steps of ResNet-50 held three to four copies of their temporaries.
"""

import contextlib
import ctypes
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h
# A room is larger than the temporaries by this.
ALIGNMENT_SLACK = 1 << 20
# Near a room lies a free block for what others allocate while the room is free. It is of half the
# size or less, since glibc takes the smallest block that suffices. Blocks that stay keep both
# apart. No page of these is ever written.
DECOY, SEPARATOR = 256 << 20, 32 << 20
# Sizes and number of the small blocks that a thread of glibc keeps for itself (7 of a size up to
# glibc 2.42, then 16), such as those cut off aligned ones. They are not joined with neighbours.
SMALL, OF_A_THREAD = range(24, 121, 16), 16
# After so many moves a room no longer gives its old place back, which takes time.
MOVES = 20

_kept = _inline = False


def keep() -> None:
    """Makes glibc keep freed memory; must be called before other threads start."""
    global _kept
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = _libc().mallopt
        for setting, value in ((M_TRIM_THRESHOLD, -1), (M_MMAP_MAX, 0), (M_ARENA_MAX, 1)):
            mallopt(setting, value)
        _kept = True


def dispatch_inline() -> None:
    """Makes programs of one CPU device run within their dispatch, whose arguments are ready.

    Otherwise a step may allocate its temporaries before the step before it has freed its own. Must
    be called before JAX's backend starts.
    """
    global _inline
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    _inline = True


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL("libc.so.6")
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    return libc


class Room:
    """A block of the heap that is free within the context, for the temporaries of programs.

    Its pages are taken from the system when they are first written. Does nothing unless `keep` and
    `dispatch_inline` were called. One thread uses it.

    Attributes:
      size: of the block, bytes; 0 where it does nothing.

    Examples:
      >>> room = Room()
      >>> room.widen(1 << 20)
      >>> with room:
      ...     pass  # a program that allocates up to 1 MiB of temporaries
      >>> room.release()
    """

    def __init__(self) -> None:
        self.size = 0
        self._block: int | None = None
        self._place: int | None = None
        self._moves = 0
        self._separators: list[int] = []
        self._libc = _libc() if _kept and _inline else None

    def widen(self, size: int) -> None:
        """Makes room for temporaries of `size` bytes, if they need more."""
        if self._libc is None or size + ALIGNMENT_SLACK <= self.size:
            return
        self.release()
        malloc = self._libc.malloc
        self.size = size + ALIGNMENT_SLACK
        self._place = self._block = malloc(self.size)
        self._separators.append(malloc(SEPARATOR))
        decoy = malloc(min(self.size // 2, DECOY))
        self._separators.append(malloc(SEPARATOR))
        self._libc.free(decoy)

    def widen_for(self, compiled: Any) -> None:
        """Makes room for the temporaries of a compiled program of JAX."""
        if self._libc is not None and (memory := compiled.memory_analysis()) is not None:
            self.widen(memory.temp_size_in_bytes)

    def release(self) -> None:
        """Gives the room back to the heap."""
        self._free_block()
        self.size = 0
        while self._libc is not None and self._separators:
            self._libc.free(self._separators.pop())

    def _free_block(self) -> None:
        block, self._block = self._block, None
        if self._libc is not None:
            self._libc.free(block)

    def __enter__(self) -> None:
        if self._libc is None or not self.size:
            return
        # This thread has all the small blocks that it keeps: what is cut off is joined again.
        for size in SMALL:
            for block in [self._libc.malloc(size) for _ in range(OF_A_THREAD)]:
                self._libc.free(block)
        self._free_block()

    def __exit__(self, *exception: object) -> None:
        if self._libc is None or not self.size or self._block is not None:
            return
        self._block = self._libc.malloc(self.size)
        if self._block != self._place and self._moves < MOVES:
            # Another thread has taken a part of the old place. Its pages go back to the system, and
            # half of what is left is taken, so that no step comes to lie there.
            self._libc.malloc_trim(0)
            self._separators.append(self._libc.malloc(self.size // 2))
            self._place, self._moves = self._block, self._moves + 1
