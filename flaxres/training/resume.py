"""Checks of a workdir before training starts, and the state that training starts from."""

import pathlib
from collections.abc import Callable

import jax

from flaxres.config.check import check_devices
from flaxres.config.files import from_json, resolved
from flaxres.config.schema import Config
from flaxres.config.settings import differences
from flaxres.data.loader import note
from flaxres.data.source import Source
from flaxres.errors import InputError
from flaxres.training import hosts
from flaxres.training.checkpoints import Checkpoints
from flaxres.training.provenance import Progress, Provenance, from_json as read_provenance
from flaxres.training.run import Run, prepare_run
from flaxres.training.state import State
from flaxres.training.verification import steps
from flaxres.training.workdir import CHECKPOINTS, CONFIG, require_writable


def prepare_workdir(config: Config, folder: pathlib.Path) -> Run:
    """Prepares the run, with nothing compiled yet, and creates the workdir.

    Raises:
      InputError: the config could not train, the workdir can't be written, or it has another run.
    """
    check_devices(config, jax.device_count())
    if hosts.leader():
        require_writable(folder)
    require_same_config(config, folder)
    run = prepare_run(config)
    folder.mkdir(parents=True, exist_ok=True)
    return run


def require_same_config(config: Config, folder: pathlib.Path, measuring: bool = False) -> None:
    """Checks that a workdir with checkpoints has the run of this config.

    Args:
      config: the config.
      folder: the workdir.
      measuring: allows differences in settings that only decide how the model is measured.

    Raises:
      InputError: settings differ; the message names them.
    """
    if not steps(folder / CHECKPOINTS) or not (folder / CONFIG).exists():
        return
    if changed := differences(from_json(folder / CONFIG), config, measuring):
        raise InputError(
            f"workdir {str(folder)!r} has a run with another config ({'; '.join(changed)}): use "
            "another --workdir, or that config"
        )


def start_or_resume(
    run: Run, checkpoints: Checkpoints, provenance: Provenance, say: Callable[[str], None]
) -> tuple[State, Progress]:
    """Returns the newest checkpoint that verifies, or the state at step 0, and its progress.

    Args:
      run: the run.
      checkpoints: the checkpoints of its workdir.
      provenance: of this process.
      say: gets a line where a resume can't give the bits of an uninterrupted run.

    Raises:
      InputError: the checkpoint was trained on other data or classes.
    """
    if checkpoints.step is None:
        return run.first_state(), Progress()
    saved, progress = read_provenance(checkpoints.provenance())
    require_same_classes(run.train, saved)
    if saved.data != run.train.digest:
        raise InputError(
            f"dataset {run.train.name} has digest {run.train.digest[:12]}, the run's checkpoint "
            f"was trained on {saved.data[:12]}: give the same images, or another workdir"
        )
    if saved.convolutions != provenance.convolutions:
        say(
            f"the run computed its convolutions by {saved.convolutions} and now does by "
            f"{provenance.convolutions}: its bits differ from those of an uninterrupted run"
        )
    return checkpoints.restore(run.abstract_state()), progress


def require_same_classes(source: Source, saved: Provenance) -> None:
    """Checks the names of the classes, without which their numbers mean nothing.

    Raises:
      InputError: the checkpoint was trained on other classes.
    """
    if saved.classes != source.class_digest:
        raise InputError(
            f"the {len(source.classes)} classes of {source.name} are not those that the checkpoint "
            f"was trained on (digest {source.class_digest[:12]}, there {saved.classes[:12]}): give "
            "the dataset of the run"
        )


def restore_run(
    config: Config, folder: pathlib.Path, say: Callable[[str], None] = note
) -> tuple[Run, State]:
    """Returns the run of a workdir and its newest checkpoint that verifies.

    Args:
      config: the settings of the run; those that only measure may differ.
      folder: the workdir.
      say: gets a line about each checkpoint that does not verify.

    Raises:
      InputError: there is no checkpoint, or the config or the classes are not the run's.
    """
    config = resolved(config)
    require_same_config(config, folder, measuring=True)
    if not (folder / CHECKPOINTS).is_dir():
        raise InputError(
            f"workdir {str(folder)!r} has no checkpoints: train first, or give another --workdir"
        )
    run = hosts.together(lambda: prepare_run(config))
    with Checkpoints(folder / CHECKPOINTS, say=say) as checkpoints:
        require_same_classes(run.train, read_provenance(checkpoints.provenance())[0])
        return run, checkpoints.restore(run.abstract_state())
