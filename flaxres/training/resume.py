"""Checks of a workdir before training starts, and the state that training starts from."""

import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from flaxres.config.check import check_devices
from flaxres.config.files import from_json, from_sections, resolved, to_json
from flaxres.config.schema import Config, TrainConfig
from flaxres.config.settings import differences
from flaxres.data.source import Source
from flaxres.errors import InputError
from flaxres.printing import say
from flaxres.training import hosts
from flaxres.training.checkpoints import Checkpoints
from flaxres.training.provenance import (
    ARITHMETIC,
    JAX_SETTINGS,
    Progress,
    Provenance,
    from_json as read_provenance,
)
from flaxres.training.run import Run, prepare_run
from flaxres.training.staging import is_staged, shown
from flaxres.training.state import State
from flaxres.training.verification import steps
from flaxres.training.workdir import CHECKPOINTS, CLASSES, CONFIG, replace_file, require_writable


def prepare_run_in(config: Config, folder: pathlib.Path) -> Run:
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


def write_config(run: Run, folder: pathlib.Path) -> None:
    """Writes config.json and classes.json in the first process, and checks that all see them.

    Raises:
      InputError: the workdir is not the same folder for all processes.
    """
    if hosts.leader():
        replace_file(folder / CLASSES, json.dumps(run.train.classes, indent=0) + "\n")
        replace_file(folder / CONFIG, to_json(run.config))
    hosts.wait_for_all("workdir is written to")
    if is_staged(folder):  # each process has its own
        return
    if not all(hosts.gather((folder / CONFIG).exists())):
        raise InputError(
            f"workdir {str(folder)!r} is not the same folder for all processes: it must be on a "
            "file system that all of them see"
        )


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
    before = resolved(from_json(folder / CONFIG))
    if config.train.extend:
        _require_no_shorter(before.train, config.train)
    if changed := differences(before, config, measuring):
        raise InputError(
            f"workdir {shown(folder)!r} has a run with another config ({'; '.join(changed)}): use "
            "another --workdir, or that config"
        )


def _require_no_shorter(before: TrainConfig, now: TrainConfig) -> None:
    """Checks the length of a run with `train.extend`.

    Raises:
      InputError: it is shorter than before, or given in another unit.
    """
    for name in ("steps", "epochs"):
        old, new = getattr(before, name), getattr(now, name)
        if (old is None) != (new is None) or (old is not None and new < old):
            raise InputError(
                f"train.extend=True with train.{name}={new}: the run has train.{name}={old}; give "
                f"{'a larger number' if old is not None else 'train.epochs'}"
            )
        if old is not None:  # steps override epochs
            return


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
    require_same_facts(run.config, saved, provenance)
    if changed := _changed(saved.packages, provenance.packages, ARITHMETIC):
        say(
            f"the run goes on with other versions ({'; '.join(changed)}): its bits may differ from "
            "those of an uninterrupted run"
        )
    if saved.convolutions != provenance.convolutions:
        say(
            f"the run computed its convolutions by {saved.convolutions} and now does by "
            f"{provenance.convolutions}: its bits differ from those of an uninterrupted run"
        )
    if line := _extension(run, saved, checkpoints.step):
        say(line)
    return checkpoints.restore(run.abstract_state()), progress


def _extension(run: Run, saved: Provenance, step: int) -> str:
    """Returns a line about a run that is longer than it was planned, '' for any other."""
    if saved.config is None:  # of an older version
        return ""
    before = Run(resolved(from_sections(saved.config)), run.train, run.evaluation)
    if run.steps == before.steps:
        return ""
    old, new = float(before.schedule(step)), float(run.schedule(step))
    return (
        f"the run is extended from {before.steps:,} to {run.steps:,} steps: the learning rate at "
        f"step {step:,} is {new:.3g}, and was {old:.3g} by the shorter schedule"
    )


def require_same_facts(config: Config, saved: Provenance, ours: Provenance) -> None:
    """Checks the config, the teacher and JAX's settings; older checkpoints do not name them.

    Raises:
      InputError: one differs; the message names it.
    """
    require_saved_config(config, saved)
    if saved.teacher and saved.teacher != ours.teacher:
        raise InputError(
            f"optim.distill_weights has digest {ours.teacher[:12]}, the run's checkpoint was "
            f"trained with a teacher of {saved.teacher[:12]}: give the same weights, or another "
            "workdir"
        )
    if changed := _changed(saved.jax_settings or {}, ours.jax_settings or {}, JAX_SETTINGS):
        raise InputError(
            f"JAX's settings are not those of the run's checkpoint ({'; '.join(changed)}): set "
            "them as before, e.g. by a variable of the name in capitals, or give another workdir"
        )


def require_saved_config(config: Config, saved: Provenance, measuring: bool = False) -> None:
    """Checks the config against that of a checkpoint, which holds without a config.json, too.

    Raises:
      InputError: settings differ; the message names them.
    """
    if saved.config is None:
        return
    try:
        before = resolved(from_sections(saved.config))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"the checkpoint's config is not one of this version of flaxres ({error}): use the "
            "version that trained it"
        ) from error
    if changed := differences(before, resolved(config), measuring):
        raise InputError(
            f"the checkpoint was trained with another config ({'; '.join(changed)}): use another "
            "--workdir, or that config"
        )


def _changed(before: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Returns the named values that differ, as 'name: before -> now'."""
    return [
        f"{name}: {before[name]} -> {now.get(name)}"
        for name in names
        if name in before and before[name] != now.get(name)
    ]


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


def require_checkpoints(folder: pathlib.Path) -> None:
    """Checks that a workdir has checkpoints.

    Raises:
      InputError: it has none.
    """
    if not (folder / CHECKPOINTS).is_dir():
        raise InputError(
            f"workdir {shown(folder)!r} has no checkpoints: train first, or give another --workdir"
        )


def restore_run(
    config: Config,
    folder: pathlib.Path,
    say: Callable[[str], None] = say,
    training: bool = True,
) -> tuple[Run, State]:
    """Returns the run of a workdir and its newest checkpoint that verifies.

    Args:
      config: the settings of the run; those that only measure may differ.
      folder: the workdir.
      say: gets a line about each checkpoint that does not verify.
      training: opens the training split, too; else the evaluation split takes its place.

    Raises:
      InputError: there is no checkpoint, or the config or the classes are not the run's.
    """
    config = resolved(config)
    require_same_config(config, folder, measuring=True)
    require_checkpoints(folder)
    run = hosts.leader_first(lambda: prepare_run(config, training))
    with Checkpoints(folder / CHECKPOINTS, say=say) as checkpoints:
        saved, _ = read_provenance(checkpoints.provenance())
        require_saved_config(config, saved, measuring=True)
        require_same_classes(run.train, saved)
        return run, checkpoints.restore(run.abstract_state())
