"""TensorBoard and Weights & Biases: their failure is said once, and the run goes on."""

import contextlib
import hashlib
import importlib
import pathlib
from collections.abc import Callable
from typing import Any

from flaxres.training.staging import shown

# Its thread ends at the first error, and a full queue would then block the run.
TENSORBOARD_QUEUE = 2**14


class TensorBoard:
    """Events for TensorBoard in a workdir.

    Args:
      workdir: the workdir.
      step: the number of finished steps; later events, of a killed run, are hidden.
    """

    def __init__(self, workdir: pathlib.Path, step: int) -> None:
        import tensorboardX

        self.events = tensorboardX.SummaryWriter(
            str(workdir), purge_step=step + 1, max_queue=TENSORBOARD_QUEUE
        )
        self.writer: Any = self.events.file_writer.event_writer

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes the metrics of a step."""
        self._require_thread()
        for name, value in values.items():
            self.events.add_scalar(name, value, step)

    def flush(self) -> None:
        """Writes out pending events."""
        self._require_thread()
        self.events.flush()

    def close(self) -> None:
        """Closes the file."""
        self._require_thread()
        self.events.close()

    def abandon(self) -> None:
        """Lets the process end with events that nobody writes."""
        self.writer._event_queue.cancel_join_thread()

    def _require_thread(self) -> None:
        if not self.writer._worker.is_alive():
            raise OSError("its thread has ended")


class WandB:
    """A run of Weights & Biases; a resumed one keeps its id, so that its curves stay one.

    Args:
      workdir: the workdir.
      project: name of the project.
    """

    def __init__(self, workdir: pathlib.Path, project: str) -> None:
        name = shown(workdir.resolve())
        run_id = hashlib.sha256(name.encode(errors="surrogateescape"))
        self.run = importlib.import_module("wandb").init(
            project=project,
            id=run_id.hexdigest()[:16],
            name=workdir.name,
            dir=str(workdir),
            resume="allow",
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Logs the metrics of a step."""
        self.run.log(values, step=step)

    def flush(self) -> None:
        """Does nothing: the library sends by itself."""

    def close(self) -> None:
        """Ends the run there."""
        self.run.finish()

    def abandon(self) -> None:
        """Does nothing."""


class Sink:
    """A writer of metrics that is dropped at its first error.

    Args:
      make: makes the writer.
      name: its name for people.
      say: gets the line about the error.
    """

    def __init__(
        self, make: Callable[[], TensorBoard | WandB], name: str, say: Callable[[str], None]
    ) -> None:
        self.name, self.say = name, say
        self.log: TensorBoard | WandB | None = None
        with self._guarded():
            self.log = make()

    def do(self, action: Callable[[TensorBoard | WandB], None]) -> None:
        """Calls `action` with the writer, if it has not failed."""
        if self.log is not None:
            with self._guarded():
                action(self.log)

    @contextlib.contextmanager
    def _guarded(self) -> Any:
        try:
            yield
        except Exception as error:  # of many types: files, the network, the account
            reason = " ".join(str(error).split()) or type(error).__name__
            self.say(f"{self.name} gets no more metrics ({reason}); metrics.jsonl gets all of them")
            failed, self.log = self.log, None
            if failed is not None:
                with contextlib.suppress(Exception):
                    failed.abandon()
