"""One thread that runs the images of all waiting requests in batches."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # the folder of an export does not need it
    from jaxtyping import Float32, UInt8

Program = Callable[[np.ndarray], np.ndarray]


class QueueFullError(Exception):
    """More images wait than the queue holds."""


class _Request:
    """Images of one request.

    Attributes:
      images: (n, S, S, 3) uint8.
      rows: the results so far, by image.
      taken: number of images that are in a batch.
      error: of a batch with some of the images.
      done: set when no image waits for its result.
    """

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        self.rows: list[np.ndarray] = []
        self.taken = 0
        self.error: Exception | None = None
        self.done = threading.Event()


class Batches:
    """Runs the images of all waiting requests together.

    While a batch runs, further requests gather; the next batch takes them all, up to `largest`
    images. Batches are padded to one of `sizes`, so that few programs are compiled.

    Args:
      program: maps (n, S, S, 3) uint8 images to (n, classes) probabilities.
      size: S, pixels.
      largest: most images of a batch.
      queue: most images that wait.
      ran: called with the number of images of each batch.

    Examples:
      >>> batches = Batches(lambda images: images.mean((1, 2)), 8, largest=4, queue=16)
      >>> batches.sizes
      (1, 2, 4)
      >>> batches.run(np.full((3, 8, 8, 3), 7, np.uint8)).tolist()
      [[7.0, 7.0, 7.0], [7.0, 7.0, 7.0], [7.0, 7.0, 7.0]]
      >>> batches.close()
    """

    def __init__(
        self,
        program: Program,
        size: int,
        largest: int,
        queue: int,
        ran: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.sizes = batch_sizes(largest)
        self.limit = queue
        self.waiting = 0
        self._program, self._side, self._ran = program, size, ran
        self._requests: collections.deque[_Request] = collections.deque()
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    def warm_up(self, stop: threading.Event | None = None) -> None:
        """Compiles the program for every size of batches; ends early if `stop` is set."""
        for size in self.sizes:
            if stop is None or not stop.is_set():
                self._program(np.zeros((size, self._side, self._side, 3), np.uint8))

    def run(self, images: UInt8[np.ndarray, "n s s 3"]) -> Float32[np.ndarray, "n classes"]:
        """Returns the rows of some images, once their batches have run.

        Raises:
          QueueFullError: more than `queue` images would wait.
        """
        request = _Request(images)
        with self._changed:
            if self.waiting + len(images) > self.limit:
                raise QueueFullError
            self.waiting += len(images)
            self._requests.append(request)
            self._changed.notify()
        request.done.wait()
        if request.error is not None:
            raise request.error
        return np.stack(request.rows)

    def close(self) -> None:
        """Ends the thread, after the images that wait."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while parts := self._take():
            images = np.concatenate([request.images[part] for request, part in parts])
            count = len(images)
            size = next(size for size in self.sizes if size >= count)
            padded = np.pad(images, ((0, size - count), (0, 0), (0, 0), (0, 0)))
            try:
                rows = self._program(padded)[:count]
            except Exception as error:  # a compiler's or a device's; each request raises it
                rows = np.zeros((count, 0), np.float32)
                for request, _ in parts:
                    request.error = error
            self._ran(count)
            for request, part in parts:
                taken = part.stop - part.start
                request.rows += list(rows[:taken])
                rows = rows[taken:]
                if len(request.rows) == len(request.images):
                    request.done.set()

    def _take(self) -> list[tuple[_Request, slice]]:
        """Waits for images; returns requests with the part of their images for the next batch."""
        with self._changed:
            self._changed.wait_for(lambda: self._requests or self._closed)
            parts, room = [], self.sizes[-1]
            while self._requests and room:
                request = self._requests[0]
                part = slice(request.taken, min(request.taken + room, len(request.images)))
                parts.append((request, part))
                request.taken = part.stop
                room -= part.stop - part.start
                self.waiting -= part.stop - part.start
                if request.taken == len(request.images):
                    self._requests.popleft()
            return parts


def batch_sizes(largest: int) -> tuple[int, ...]:
    """Returns the powers of two below the largest batch, and the largest batch.

    Examples:
      >>> batch_sizes(12)
      (1, 2, 4, 8, 12)
    """
    return (*(2**i for i in range(largest) if 2**i < largest), largest)
