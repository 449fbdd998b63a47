"""Loggers that a run can write its metrics to: TensorBoard, Weights & Biases, MLflow and trackio.

A further logger is a class with the methods of `Logger`, a row in `LOGGERS`, and a setting in
`TrainConfig`, which holds the name of its project.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import pathlib
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from flaxres.config.schema import Config, TrainConfig
from flaxres.config.settings import flat
from flaxres.errors import InputError
from flaxres.training.workdir import RUN, replace_file

End = Literal["finished", "stopped", "failed"]
"""End of a process of a run: a stopped one saved its state, and the next process resumes."""

# Its thread ends at the first error, and a full queue would then block the run.
TENSORBOARD_QUEUE = 2**14
# Limits of MLflow for one request.
PARAMS_PER_REQUEST, METRICS_PER_REQUEST = 100, 1000
# It asks for Pillow below 13, which resizes images otherwise, but uses none of it for metrics.
GET_TRACKIO = "pip install -e '.[loggers]' && pip install --no-deps trackio"
STATUS: Mapping[End, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class Logger(Protocol):
    """A writer of metrics. Its methods raise any exception; the run then goes on without it."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes the metrics of a step, or keeps them for the next `flush`."""

    def flush(self) -> None:
        """Writes out what is kept."""

    def close(self, end: End) -> None:
        """Writes out what is kept, and ends the run there."""

    def abandon(self) -> None:
        """Lets the process end without what is kept; called after an error."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts on a run that loggers show.

    Attributes:
      workdir: the workdir.
      step: the number of finished steps.
      config: the settings.
      project: the value of the logger's setting: its project, or True.
      rows: the metrics up to `step`, which earlier processes of the run wrote.
    """

    workdir: pathlib.Path
    step: int
    config: Config
    project: Any
    rows: Sequence[tuple[int, dict[str, float]]] = ()

    def run_id(self) -> str:
        """Returns a random name of the run, which its workdir keeps.

        It is written before a logger uses it: a run that is killed at any time finds its own run
        there again. A workdir that is deleted and begun anew is another run.
        """
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            return str(json.loads((self.workdir / RUN).read_text(encoding="utf-8"))["id"])
        name = uuid.uuid4().hex
        replace_file(self.workdir / RUN, json.dumps({"id": name}) + "\n")
        return name

    def settings(self) -> dict[str, Any]:
        """Returns the settings by full name, as JSON has them."""
        values: dict[str, Any] = json.loads(json.dumps(flat(self.config), default=str))
        return values


@contextlib.contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Lets imports of modules fail that are not imported yet."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


class TensorBoard:
    """Events for TensorBoard in a workdir; later events, of a killed run, are hidden.

    The file begins with the first metrics, so that its library does not delay the first step.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.events: Any = None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes the metrics of a step."""
        if self.events is None:
            with hidden("torch", "boto3"):  # it would import them, and uses neither for numbers
                import tensorboardX

            self.events = tensorboardX.SummaryWriter(
                str(self.facts.workdir),
                purge_step=self.facts.step + 1,
                max_queue=TENSORBOARD_QUEUE,
            )
        self._require_thread()
        for name, value in values.items():
            self.events.add_scalar(name, value, step)

    def flush(self) -> None:
        """Writes out pending events."""
        if self.events is not None:
            self._require_thread()
            self.events.flush()

    def close(self, end: End) -> None:
        """Closes the file."""
        if self.events is not None:
            self._require_thread()
            self.events.close()

    def abandon(self) -> None:
        """Lets the process end with events that nobody writes."""
        if self.events is not None:
            self._writer._event_queue.cancel_join_thread()

    @property
    def _writer(self) -> Any:
        return self.events.file_writer.event_writer

    def _require_thread(self) -> None:
        if not self._writer._worker.is_alive():
            raise OSError("its thread has ended")


class WandB:
    """A run of Weights & Biases; a resumed one keeps its id, so that its curves stay one.

    The library tells the first step that its server lacks. Offline it knows no earlier process, and
    the folder of each gets the whole curve: a kill loses what is not yet on disk, 15 s or so.
    """

    def __init__(self, facts: Facts) -> None:
        self.run = importlib.import_module("wandb").init(
            project=facts.project,
            id=facts.run_id(),
            name=facts.workdir.name,
            dir=str(facts.workdir),
            config=facts.settings(),
            resume="allow",
        )
        self.next_step = self.run.step

    def write(self, step: int, values: dict[str, float]) -> None:
        """Logs the metrics of a step."""
        if step >= self.next_step:
            self.run.log(values, step=step)

    def flush(self) -> None:
        """Does nothing: the library sends by itself."""

    def close(self, end: End) -> None:
        """Ends the run there; a stopped one is marked as preempted."""
        if end == "stopped":
            self.run.mark_preempting()
        self.run.finish(exit_code={"finished": 0, "stopped": 75, "failed": 1}[end])

    def abandon(self) -> None:
        """Does nothing."""


class MLflow:
    """A run of an experiment of MLflow; a resumed one finds it by a tag.

    MLflow keeps every value that it is given, also a second one for the same step. Steps that the
    run has are therefore left out, metric by metric. The tracking server is that of the environment
    (`MLFLOW_TRACKING_URI`), or MLflow's default.
    """

    def __init__(self, facts: Facts) -> None:
        mlflow = importlib.import_module("mlflow")
        self.entities: Any = importlib.import_module("mlflow.entities")
        self.client: Any = mlflow.MlflowClient()
        self.kept: list[Any] = []
        experiment, name = self._experiment(facts.project), facts.run_id()
        found = self.client.search_runs([experiment], f"tags.`flaxres.run` = '{name}'")
        if found:
            self.id = found[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
        else:
            context = importlib.import_module("mlflow.tracking.context.registry")
            tags = context.resolve_tags({"flaxres.run": name})
            made = self.client.create_run(experiment, tags=tags, run_name=facts.workdir.name)
            self.id = made.info.run_id
        data = self.client.get_run(self.id).data
        self.last = {metric.key: metric.step for metric in data.to_proto().metrics}
        # A resume may change some settings, but MLflow refuses a second value.
        self._log_params({k: v for k, v in facts.settings().items() if k not in data.params})

    def write(self, step: int, values: dict[str, float]) -> None:
        """Keeps the metrics of a step until the next `flush`, which sends them in one request."""
        now = int(1000 * time.time())
        self.kept += [
            self.entities.Metric(name, value, now, step)
            for name, value in values.items()
            if step > self.last.get(name, -1)
        ]
        if len(self.kept) >= METRICS_PER_REQUEST:
            self.flush()

    def flush(self) -> None:
        """Sends what is kept."""
        while self.kept:
            self.client.log_batch(self.id, metrics=self.kept[:METRICS_PER_REQUEST])
            del self.kept[:METRICS_PER_REQUEST]

    def close(self, end: End) -> None:
        """Ends the run there; a stopped one is KILLED until it resumes."""
        self.flush()
        self.client.set_terminated(self.id, STATUS[end])

    def abandon(self) -> None:
        """Does nothing."""

    def _experiment(self, name: str) -> str:
        """Returns the id of an experiment, which is created where there is none."""
        if (found := self.client.get_experiment_by_name(name)) is None:
            try:
                return str(self.client.create_experiment(name))
            except Exception:  # another run may have created it meanwhile
                if (found := self.client.get_experiment_by_name(name)) is None:
                    raise
        return str(found.experiment_id)

    def _log_params(self, values: Mapping[str, Any]) -> None:
        params = [self.entities.Param(name, str(value)) for name, value in values.items()]
        for first in range(0, len(params), PARAMS_PER_REQUEST):
            self.client.log_batch(self.id, params=params[first : first + PARAMS_PER_REQUEST])


class Trackio:
    """A run of trackio, on this machine (`TRACKIO_DIR`) or in a Space (`TRACKIO_SPACE_ID`).

    Trackio resumes the newest run of the same name in the project, so that the name has to tell
    apart runs in workdirs of the same name. It keeps every row that it is given, also a second one
    of a step: steps that the run has are left out, and the rows of a step are sent as one. Its own
    errors are Python warnings, and it goes on.
    """

    def __init__(self, facts: Facts) -> None:
        self.run: Any = importlib.import_module("trackio").init(
            facts.project,
            name=f"{facts.workdir.name}-{facts.run_id()[:8]}",
            config=facts.settings(),
            resume="allow",
            embed=False,
        )
        self.next_step = self.run._next_step  # it has no public name
        self.step, self.kept = -1, dict[str, float]()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Keeps the metrics of a step until the next step."""
        if step != self.step:
            self._send()
            self.step = step
        self.kept |= values

    def flush(self) -> None:
        """Does nothing: the last step may get more metrics."""

    def close(self, end: End) -> None:
        """Sends the last step, and waits until all is written, 30 s at most."""
        self._send()
        self.run.finish()

    def abandon(self) -> None:
        """Does nothing."""

    def _send(self) -> None:
        if self.kept and self.step >= self.next_step:
            self.run.log(self.kept, step=self.step)
        self.kept = {}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of logger.

    Attributes:
      setting: its setting in `TrainConfig`; a run without a value there has no such logger.
      name: its name for people.
      package: the package that it needs.
      install: the command that installs it; '' if the trainer requires it.
      make: makes the logger.
      remote: it may wait for a server, and is therefore called by a thread of its own. A resumed
        run writes all of its rows again: the logger leaves out those that it has, and gets what a
        killed process or a server that was down left out.
    """

    setting: str
    name: str
    package: str
    install: str
    make: Callable[[Facts], Logger]
    remote: bool = True


LOGGERS = (
    Kind("tensorboard", "TensorBoard", "tensorboardX", "", TensorBoard, remote=False),
    Kind("wandb", "Weights & Biases", "wandb", "pip install wandb", WandB),
    Kind("mlflow", "MLflow", "mlflow", "pip install mlflow", MLflow),
    Kind("trackio", "trackio", "trackio", GET_TRACKIO, Trackio),
)


def require_loggers(train: TrainConfig) -> None:
    """Checks that the packages of the loggers are installed.

    Raises:
      InputError: one is not.
    """
    for kind in LOGGERS:
        value = getattr(train, kind.setting)
        if value and kind.install and importlib.util.find_spec(kind.package) is None:
            raise InputError(
                f"train.{kind.setting}={value!r} needs the package {kind.package}: "
                f"{kind.install}, or leave it out"
            )
