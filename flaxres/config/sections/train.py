"""Settings of the length of a run, its checkpoints, its log and its devices."""

import dataclasses
from typing import Literal

from flaxres.config import _rules as rules
from flaxres.config._rules import optional, setting


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of the run: its length, its devices and its output.

    Examples:
      >>> TrainConfig(batch_size=1024, epochs=18).epochs
      18
    """

    batch_size: int = setting(256, rules.POSITIVE)
    """Global batch size, over all devices and hosts."""
    eval_batch_size: int = setting(256, rules.POSITIVE, resume=True)
    """Global batch size of evaluation."""
    epochs: float = setting(90.0, rules.POSITIVE, length=True)
    """Length of the training in epochs."""
    steps: int | None = setting(None, optional(rules.POSITIVE), length=True)
    """Length of the training in steps; overrides epochs."""
    extend: bool = setting(False, resume=True)
    """Let a run in its workdir go on with larger `epochs` or `steps`. The
    schedule is then that of the new length, from the step it is at."""
    eval_every_epochs: float = setting(1.0, rules.POSITIVE)
    """Epochs between evaluations."""
    patience: int = setting(0, rules.NOT_NEGATIVE, resume=True)
    """Evaluations without a better `monitor` after which the run is
    finished; 0 is never. The schedule still spans all epochs."""
    monitor: Literal["top1", "loss", "mean_average_precision"] = setting("top1")
    """Figure of the evaluation that `patience` watches; the mean average
    precision is that of data.multi_label."""
    stop_after_minutes: float | None = setting(None, optional(rules.POSITIVE), resume=True)
    """Minutes after which the process saves the state and ends with code
    75, as after a signal; the same command resumes."""
    checkpoint_every_epochs: float = setting(1.0, rules.POSITIVE, resume=True)
    """Epochs between checkpoints."""
    keep_checkpoints: int = setting(3, rules.POSITIVE, resume=True)
    """Number of newest checkpoints to keep."""
    keep_best: int = setting(1, rules.NOT_NEGATIVE, resume=True)
    """Number of checkpoints with the best top-1 (with data.multi_label,
    mean average precision) to keep besides, among those saved at an
    evaluation."""
    non_finite: Literal["stop", "skip"] = setting("stop")
    """Treatment of a loss or gradient that is not finite: 'stop' saves the
    state before it and names the samples; 'skip' leaves the step out."""
    loss_limit: float = setting(0.0, rules.NOT_NEGATIVE)
    """A loss above this limit is treated as not finite, against sudden
    spikes; 0 is no limit."""
    deterministic: bool = setting(False)
    """Use only kernels that give the same bits in every run; this slows
    GPUs down. CPUs are always deterministic."""
    watchdog_seconds: float = setting(1800.0, rules.NOT_NEGATIVE, resume=True)
    """Seconds after which a step, evaluation or save ends the process with
    code 70 and leaves its stacks; 0 is never. Compiling counts."""
    accumulate: int = setting(1, rules.POSITIVE)
    """Parts of a batch that are computed one after another, to save
    memory. With model.bn_group, which must divide the part, the result
    is the same but for the masks of dropout and stochastic depth."""
    ema_decay: float = setting(0.0, rules.BELOW_ONE)
    """Decay of the moving average of parameters and statistics, which
    evaluation then uses; 0 is off."""
    ema_every: int = setting(1, rules.POSITIVE)
    """Steps between updates of the moving average."""
    ema_start_epochs: float = setting(0.0, rules.NOT_NEGATIVE)
    """Epochs before averaging starts; until then the average is a copy of
    the weights."""
    log_every_steps: int = setting(50, rules.POSITIVE, resume=True)
    """Steps between log lines."""
    steps_per_dispatch: int | None = setting(None, optional(rules.POSITIVE))
    """Steps that the device runs per call on data that it holds
    (data.resident); None is 16 on accelerators and 1 on CPUs, whose
    loops are slow."""
    seed: int = setting(0, rules.SEED)
    """Seed of the initialisation, the sample order and the augmentation."""
    devices: int | None = setting(None, optional(rules.POSITIVE), resume=True)
    """Number of devices to use; None is all."""
    tensorboard: bool = setting(True, resume=True, local=True)
    """Write TensorBoard events."""
    wandb: str | None = setting(None, resume=True, local=True)
    """Project of Weights & Biases to log to besides; needs the package
    wandb."""
    mlflow: str | None = setting(None, resume=True, local=True)
    """Experiment of MLflow to log to besides; needs the package mlflow."""
    trackio: str | None = setting(None, resume=True, local=True)
    """Project of trackio to log to besides; needs the package trackio."""
    profile_steps: tuple[int, int] | None = setting(None, optional(rules.TRACE), resume=True)
    """First and last step of a trace by JAX's profiler, written to
    `profile` in the workdir."""
    progress: bool = setting(True, resume=True, local=True)
    """Show a live progress bar on a terminal; other outputs get plain
    lines."""
