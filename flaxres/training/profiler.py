"""Traces of training steps by JAX's profiler."""

import math
import pathlib

import jax

from flaxres.training.state import State


class Profile:
    """Traces the steps `train.profile_steps` into a folder, for TensorBoard or Perfetto.

    A context manager.

    Args:
      steps: the first and the last step, or None.
      folder: the folder of the trace.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: pathlib.Path) -> None:
        self.first, self.last = map(float, steps or (math.inf, math.inf))
        self.folder, self.tracing = folder, False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        if self.tracing:
            jax.profiler.stop_trace()

    def before(self, step: int, count: int) -> None:
        """Starts the trace if it begins within the `count` steps after `step`."""
        if not self.tracing and step < self.first <= step + count:
            jax.profiler.start_trace(self.folder)
            self.tracing = True

    def after(self, step: int, state: State) -> None:
        """Ends the trace if `step` was its last one; waits for `state` first."""
        if self.tracing and step >= self.last:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self.tracing = False
