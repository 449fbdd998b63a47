"""Early stopping, once evaluations no longer get better."""

import math

from flaxres.config.schema import TrainConfig
from flaxres.training.evaluation import Report
from flaxres.training.provenance import Progress


class Patience:
    """Counts the evaluations since the best one (Prechelt 1998, section 2, criterion UP).

    Attributes:
      best: the best value of `train.monitor` so far; None before the first evaluation.
      waited: evaluations since then.

    Examples:
      >>> patience = Patience(TrainConfig(patience=2), Progress())
      >>> for top1 in (0.5, 0.75, 0.75, 0.7):
      ...     patience.see(Report(top1, None, loss=1.0, examples=4, step=10))
      >>> patience.over, str(patience)
      (True, 'top1 has not been better than 0.75 in 2 evaluations')
    """

    def __init__(self, train: TrainConfig, progress: Progress) -> None:
        """Goes on from the progress of a run.

        Args:
          train: its `patience` and `monitor`.
          progress: of the checkpoint that the run resumes from.
        """
        self.limit, self.monitor = train.patience, train.monitor
        self.best, self.waited = progress.best, progress.waited

    def see(self, report: Report) -> None:
        """Counts an evaluation."""
        value = getattr(report, self.monitor)
        sign = -1 if self.monitor == "loss" else 1
        better = self.best is None or sign * value > sign * self.best
        if better and math.isfinite(value):
            self.best, self.waited = value, 0
        else:
            self.waited += 1

    @property
    def over(self) -> bool:
        """True if training should end."""
        return 0 < self.limit <= self.waited

    def __str__(self) -> str:
        best = "finite" if self.best is None else f"better than {self.best:.4g}"
        return f"{self.monitor} has not been {best} in {self.waited} evaluations"
