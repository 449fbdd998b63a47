"""The compiled training steps of a run."""

from typing import Any

import jax
import numpy as np

from flaxres import heap
from flaxres.training.dispatch import steps_per_dispatch
from flaxres.training.run import Run
from flaxres.training.state import State


class Stepper:
    """Runs the training step, compiled once for each image size.

    Attributes:
      most: the largest number of steps in a dispatch.
      room: for the temporaries of the step, where it has one device.
    """

    def __init__(self, run: Run) -> None:
        self.most, self.teacher_variables = steps_per_dispatch(run.config), run.teacher_variables
        self.step, self.seed = run.train_step(), np.uint32(run.config.train.seed)
        self.compiled: dict[tuple[int, ...], Any] = {}
        self.room, self.alone = heap.Room(), run.mesh.size == 1

    def prepared(self, batch: Any) -> bool:
        """Returns True if the step is compiled for the shape of `batch`."""
        return batch["image"].shape in self.compiled

    def prepare(self, state: State, batch: Any) -> None:
        """Compiles the step for the shapes of `state` and `batch`."""
        compiled = self.step.lower(*self._arguments(state, batch, 1)).compile()
        self.compiled[batch["image"].shape] = compiled
        # A program of several devices is not run within its dispatch.
        if self.alone:
            self.room.widen_for(compiled)

    def _arguments(self, state: State, batch: Any, count: int) -> tuple[Any, ...]:
        counted = () if self.most == 1 else (np.int32(count),)
        return (state, self.seed, batch, *counted, *self.teacher_variables)

    def __call__(self, state: State, batch: Any, count: int) -> tuple[State, dict[str, Any]]:
        """Runs `count` steps; returns the new state and the metrics.

        Metrics are () each; where a dispatch may have several steps, arrays of `most` values of
        which `count` are filled.
        """
        step, arguments = self.compiled[batch["image"].shape], self._arguments(state, batch, count)
        if self.room.size:
            jax.block_until_ready(arguments)
        with self.room:
            new, metrics = step(*arguments)
        return new, metrics
