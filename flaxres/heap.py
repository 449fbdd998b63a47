"""The heap of glibc, in which XLA's CPU client allocates the temporaries of each step.

`keep` makes glibc keep the memory that the client frees. Otherwise the kernel would take such large
blocks back and zero each page again, which is a third of a CIFAR step.

A `Room` is free while a step runs, and taken between steps. The client aligns its blocks, and glibc
looks for a block that is larger than an aligned one by the alignment, and cuts off the rest: it
does not find the block that the last step freed if other blocks lie beside it, and takes new memory
from the system instead. It also gives parts of that block to others, such as the compiler of the
evaluation. Without room, a few steps of ResNet-50 held three to four copies of their temporaries.
"""

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h
# A room is larger than the temporaries, for the alignment. Near it lies free space for what others
# allocate meanwhile, of half its size or less, since glibc takes the smallest block that suffices.
# Blocks that stay keep both apart; none of their pages is ever written.
MORE, NEAR, APART = 1 << 20, 256 << 20, 32 << 20
# What glibc cuts off an aligned block: sizes and number of the small blocks that a thread keeps for
# itself. They are never joined with their neighbours.
SMALL, OF_A_THREAD = range(24, 121, 16), 7

_kept = False


def keep() -> None:
    """Makes glibc keep freed memory; must be called before other threads start."""
    global _kept
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = _libc().mallopt
        for setting, value in ((M_TRIM_THRESHOLD, -1), (M_MMAP_MAX, 0), (M_ARENA_MAX, 1)):
            mallopt(setting, value)
        _kept = True


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL("libc.so.6")
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    return libc


class Room:
    """A block of the heap that is free within the context, for the temporaries of programs.

    Its pages are taken from the system when they are first written. Does nothing without `keep`.
    The program must run within the context: with `jax_cpu_enable_async_dispatch=False`, on one
    device, and with arguments that are ready.

    Attributes:
      size: of the block, bytes; 0 where it does nothing.

    Examples:
      >>> room = Room()
      >>> room.widen(1 << 20)
      >>> with room:
      ...     pass  # a program that allocates up to 1 MiB of temporaries
    """

    def __init__(self) -> None:
        self.size, self._block = 0, None
        self._libc = _libc() if _kept else None

    def widen(self, size: int) -> None:
        """Makes room for temporaries of `size` bytes, if they need more."""
        if self._libc is None or size + MORE <= self.size:
            return
        malloc, free = self._libc.malloc, self._libc.free
        free(self._block)
        self.size = size + MORE
        self._block = malloc(self.size)
        malloc(APART)
        near = malloc(min(self.size // 2, NEAR))
        malloc(APART)
        free(near)

    def __enter__(self) -> None:
        if self._libc is None or not self.size:
            return
        # This thread has all the small blocks that it keeps: what is cut off is joined again.
        for size in SMALL:
            for block in [self._libc.malloc(size) for _ in range(OF_A_THREAD)]:
                self._libc.free(block)
        self._libc.free(self._block)

    def __exit__(self, *exception: object) -> None:
        if self._libc is not None and self.size:
            self._block = self._libc.malloc(self.size)
