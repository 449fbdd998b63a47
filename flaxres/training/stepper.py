"""The compiled training steps of a run."""

from typing import Any

import numpy as np

from flaxres.training.dispatch import steps_per_dispatch
from flaxres.training.run import Run
from flaxres.training.state import State


class Stepper:
    """Runs the training step, compiled once for each image size.

    Attributes:
      most: the largest number of steps in a dispatch.
    """

    def __init__(self, run: Run) -> None:
        self.most, self.teacher_variables = steps_per_dispatch(run.config), run.teacher_variables
        self.step, self.seed = run.train_step(), np.uint32(run.config.train.seed)
        self.compiled: dict[tuple[int, ...], Any] = {}

    def prepared(self, batch: Any) -> bool:
        """Returns True if the step is compiled for the shape of `batch`."""
        return batch["image"].shape in self.compiled

    def prepare(self, state: State, batch: Any) -> None:
        """Compiles the step for the shapes of `state` and `batch`."""
        lowered = self.step.lower(*self._arguments(state, batch, 1))
        self.compiled[batch["image"].shape] = lowered.compile()

    def _arguments(self, state: State, batch: Any, count: int) -> tuple[Any, ...]:
        counted = () if self.most == 1 else (np.int32(count),)
        return (state, self.seed, batch, *counted, *self.teacher_variables)

    def __call__(self, state: State, batch: Any, count: int) -> tuple[State, dict[str, Any]]:
        """Runs `count` steps; returns the new state and the metrics.

        Metrics are () each; where a dispatch may have several steps, arrays of `most` values of
        which `count` are filled.
        """
        step = self.compiled[batch["image"].shape]
        new, metrics = step(*self._arguments(state, batch, count))
        return new, metrics
