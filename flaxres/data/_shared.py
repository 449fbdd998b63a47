"""Blocks of shared memory, to which worker processes write the images of a batch."""

import contextlib
import math
import os
from multiprocessing.shared_memory import SharedMemory

import numpy as np
from jaxtyping import UInt8

from flaxres.errors import InputError


class SharedBlocks:
    """The blocks of one loader. Blocks of finished batches are used again.

    Attributes:
      blocks: all blocks that exist.
    """

    def __init__(self) -> None:
        self.blocks: list[SharedMemory] = []
        self._unused: list[SharedMemory] = []

    def take(self, shape: tuple[int, ...]) -> tuple[UInt8[np.ndarray, "..."], SharedMemory]:
        """Returns memory of a shape, and the block in which it lies.

        Raises:
          InputError: /dev/shm has no room for another block.
        """
        need = math.prod(shape)
        block = next((block for block in self._unused if block.size >= need), None)
        if block is None:
            for small in self._unused:  # images have become larger
                self._free(small)
            self._unused.clear()
            block = allocate(need)
            self.blocks.append(block)
        else:
            self._unused.remove(block)
        return np.ndarray(shape, np.uint8, buffer=block.buf), block

    def give_back(self, block: SharedMemory) -> None:
        """Allows `take` to return a block again."""
        self._unused.append(block)

    def free_all(self) -> None:
        """Frees all blocks."""
        for block in [*self.blocks]:
            self._free(block)

    def _free(self, block: SharedMemory) -> None:
        self.blocks.remove(block)
        block.unlink()
        with contextlib.suppress(BufferError):  # an array still uses it and frees it later
            block.close()


def allocate(need: int) -> SharedMemory:
    """Allocates a block of shared memory of `need` bytes.

    Raises:
      InputError: /dev/shm has no room for it.
    """
    block = SharedMemory(create=True, size=need)
    try:
        # Without this, a full /dev/shm would kill the workers later.
        os.posix_fallocate(block._fd, 0, need)  # type: ignore[attr-defined]
    except OSError as error:
        block.close()
        block.unlink()
        raise InputError(
            f"/dev/shm has no room for {need / 2**20:.0f} MiB of shared memory ({error.strerror}): "
            "make it larger, lower data.prefetch, or set data.workers=0"
        ) from error
    return block
