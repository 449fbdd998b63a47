"""Runs `train.py` and sends itself a signal from within.

    python -m tools.killed SIGNALS POINTS COUNTS train-arguments

A signal (KILL, TERM, STOP) comes at the COUNT-th time that its point is reached. It so hits each
stage of compiling, stepping, evaluating, saving and restoring, and not only those that take long.
With several processes only process number $FLAXRES_VICTIM is hit.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import orbax.checkpoint as ocp

from flaxres import remote
from flaxres.cli._process import refusing
from flaxres.cli._train import train
from flaxres.training import checkpoints, curves, evaluation, log, loop, metrics, stepper

# Point -> the owner of a function and its name; `+` after the call, `-` before it.
POINTS: dict[str, tuple[Any, str, str]] = {
    "begin": (loop, "start_or_resume", "-"),
    "restore": (checkpoints.Checkpoints, "restore", "-"),
    "restored": (checkpoints.Checkpoints, "restore", "+"),
    "compile": (stepper.Stepper, "prepare", "-"),
    "compiled": (stepper.Stepper, "prepare", "+"),
    "step": (stepper.Stepper, "__call__", "-"),
    "stepped": (stepper.Stepper, "__call__", "+"),
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
    "curves": (curves, "draw_curves", "-"),
    "upload": (remote.RemoteFolder, "upload", "-"),
    "uploaded": (remote.RemoteFolder, "upload", "+"),
    "remove": (remote.RemoteFolder, "remove", "-"),
    "download": (remote.RemoteFolder, "download", "-"),
}

# Points that only a run with a checkpoint reaches.
RESUMING = ("restore", "restored", "download")
# Points of runs whose workdir is in an object store.
STORING = ("upload", "uploaded", "remove", "download")
# Points that only the first of several processes reaches.
LEADING = ("digest", "digested", "summary", "curves", "upload", "uploaded", "remove")
# How often a short run reaches the points that it reaches more than once.
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
    "upload": 50,
    "uploaded": 50,
    "remove": 20,
    "download": 20,
}


def arm(number: signal.Signals, point: str, count: int) -> None:
    """Patches the function of a point so that its `count`-th call sends the signal."""
    owner, name, when = POINTS[point]
    real: Callable[..., Any] = getattr(owner, name)
    left = count

    def armed(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and when == "-":
            os.kill(os.getpid(), number)
        result = real(*arguments, **options)
        if left == 0 and when == "+":
            os.kill(os.getpid(), number)
        return result

    setattr(owner, name, armed)


if __name__ == "__main__":
    words = sys.argv[4:]
    number = words[words.index("--process") + 1] if "--process" in words else "0"
    if os.environ.get("FLAXRES_VICTIM", "0") == number:
        signals, points, counts = (word.split(",") for word in sys.argv[1:4])
        for one, point, count in zip(signals, points, counts, strict=True):
            arm(signal.Signals[f"SIG{one}"], point, int(count))
    sys.exit(refusing(lambda: train(words)))
