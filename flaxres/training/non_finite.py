"""The error that a loss or gradient which is not finite ends a run with."""

import json
import pathlib

from flaxres.config.schema import TrainConfig
from flaxres.data.order import step_positions, training_ids
from flaxres.training import hosts
from flaxres.training.run import Run
from flaxres.training.workdir import replace_file


class NonFiniteError(FloatingPointError):
    """The loss or a gradient is not finite; the state before that step is saved.

    Writes the record numbers of the step's samples to `non_finite.json` in the workdir.

    Args:
      step: the step.
      run: its run.
      folder: the workdir.
    """

    def __init__(self, step: int, run: Run, folder: pathlib.Path) -> None:
        records = step_records(step, run)
        if hosts.leader():
            content = {"step": step, "split": run.train.name, "records": records}
            replace_file(folder / "non_finite.json", json.dumps(content) + "\n")
        super().__init__(
            f"step {step}: loss or gradient is not finite{_limit(run.config.train)}; step "
            f"{step - 1} is saved. Its samples are the records {records[:8]}... of "
            f"{run.train.name}, all of them in {folder / 'non_finite.json'}. Lower "
            "optim.learning_rate, or leave such steps out with train.non_finite='skip', in another "
            "workdir"
        )


def step_records(step: int, run: Run) -> list[int]:
    """Returns the record numbers of the samples of a step; the first step is 1."""
    train, repeats = run.config.train, run.config.data.repeats
    positions = step_positions(step - 1, train.batch_size)
    ids = training_ids(
        positions, len(run.train), train.seed, train.batch_size, repeats, run.balance
    )
    records: list[int] = ids.tolist()
    return records


def _limit(train: TrainConfig) -> str:
    limit = train.loss_limit
    return f", or the loss is above train.loss_limit={limit:g}" if limit else ""
