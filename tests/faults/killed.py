"""`train.py` that kills itself: `python -m tests.faults.killed POINT COUNT train-arguments`.

SIGKILL comes at the COUNT-th time that POINT is reached, from within, so that it hits each stage of compiling, stepping, evaluating, saving and
restoring, and not only those that take long.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import orbax.checkpoint as ocp

from flaxres.cli import refusing, train
from flaxres.training import checkpoints, evaluation, log, loop, metrics

# What is killed -> the owner of the function and its name; `+` kills after the call, `-` before it.
POINTS: dict[str, tuple[Any, str, str]] = {
    "begin": (loop, "begin", "-"),
    "restore": (checkpoints.Checkpoints, "restore", "-"),
    "restored": (checkpoints.Checkpoints, "restore", "+"),
    "compile": (loop.Stepper, "prepare", "-"),
    "compiled": (loop.Stepper, "prepare", "+"),
    "step": (loop.Stepper, "__call__", "-"),
    "stepped": (loop.Stepper, "__call__", "+"),
    "log": (log.Log, "emit", "+"),
    "evaluation": (evaluation.Evaluator, "__call__", "-"),
    "evaluated": (evaluation.Evaluator, "__call__", "+"),
    "save": (ocp.CheckpointManager, "save", "-"),
    "saving": (ocp.CheckpointManager, "save", "+"),
    "digest": (checkpoints.Checkpoints, "digest", "-"),
    "digested": (checkpoints.Checkpoints, "digest", "+"),
    "seal": (checkpoints.Checkpoints, "seal", "-"),
    "sealed": (checkpoints.Checkpoints, "seal", "+"),
    "read_back": (checkpoints.Checkpoints, "read_back", "-"),
    "summary": (metrics, "write_summary", "-"),
    "curves": (metrics, "draw_curves", "-"),
}

# Points that only a run with a checkpoint comes to, and how often a short run comes to those that it passes more than once.
RESUMING = ("restore", "restored")
MOST = {
    "step": 9,
    "stepped": 9,
    "log": 9,
    "evaluation": 2,
    "evaluated": 2,
    "save": 2,
    "saving": 2,
    "digest": 2,
    "digested": 2,
    "seal": 2,
    "sealed": 2,
}


def arm(point: str, count: int) -> None:
    owner, name, when = POINTS[point]
    real: Callable[..., Any] = getattr(owner, name)
    left = count

    def armed(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and when == "-":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **options)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, armed)


if __name__ == "__main__":
    arm(sys.argv[1], int(sys.argv[2]))
    sys.exit(refusing(lambda: train(sys.argv[3:], "configs/digits.py", "train.py")))
