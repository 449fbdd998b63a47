"""Networks of finished runs, from nothing but the workdir."""

import dataclasses
import json
import os
import pathlib
from typing import Any, NamedTuple

import jax

from flaxres.config.files import from_json, resolved
from flaxres.config.schema import Config
from flaxres.data.digests import words_digest
from flaxres.data.preprocess import Preprocess
from flaxres.data.source import Source
from flaxres.errors import InputError
from flaxres.models.network import Network
from flaxres.printing import say
from flaxres.training.checkpoints import Checkpoints
from flaxres.training.provenance import from_json as read_provenance
from flaxres.training.resume import require_checkpoints, restore_run
from flaxres.training.run import Run, require_x64
from flaxres.training.staging import local
from flaxres.training.state import State
from flaxres.training.workdir import CHECKPOINTS, CLASSES, CONFIG


class LoadedRun(NamedTuple):
    """The network of a run.

    Attributes:
      model: the network.
      variables: its variables, as the run evaluates them: the average where it keeps one.
      preprocess: the preprocessing of the run's evaluation.
      classes: names of the classes in label order.

    Examples:
      >>> import flaxres, numpy as np
      >>> model = flaxres.ResNet9(depths=(1,), widths=(4,), stem_width=4, num_classes=2)
      >>> variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 3)))
      >>> run = LoadedRun(model, variables, Preprocess(8, 8), ("cat", "dog"))
      >>> run.classes[int(run.model.apply(run.variables, np.zeros((1, 8, 8, 3))).argmax())]
      'cat'
    """

    model: Network
    variables: Any
    preprocess: Preprocess
    classes: tuple[str, ...]


def load_run(workdir: str | os.PathLike[str]) -> LoadedRun:
    """Returns the network of a run's newest checkpoint that verifies.

    Needs only the workdir: neither the dataset, nor the devices of the run. Only runs of older
    versions, which wrote no classes.json, need the dataset for the names of the classes.

    Args:
      workdir: the workdir, a folder or an address in an object store.

    Returns:
      `(model, variables, preprocess, classes)`, a named tuple.

    Raises:
      InputError: the folder has no run, or no checkpoint that verifies.

    Examples:
      >>> import flaxres, tempfile
      >>> from flaxres import Config, DataConfig, ModelConfig, TrainConfig
      >>> network = ModelConfig(name="resnet20", depths=(1, 1, 1))
      >>> train = TrainConfig(steps=1, batch_size=16, eval_batch_size=256, devices=1)
      >>> folder = tempfile.TemporaryDirectory()
      >>> sizes = {"image_size": 8, "eval_size": 8, "eval_resize": 8}
      >>> data = DataConfig(name="digits", data_dir=folder.name, **sizes)
      >>> state = flaxres.fit(Config(network, data, train=train), f"{folder.name}/run")
      >>> model, variables, preprocess, classes = flaxres.load_run(f"{folder.name}/run")
      >>> model.apply(variables, jax.numpy.zeros((1, 8, 8, 3))).shape, classes[:2]
      ((1, 10), ('0', '1'))
      >>> folder.cleanup()
    """
    return read_run(workdir)[0]


def read_run(workdir: str | os.PathLike[str]) -> tuple[LoadedRun, Config]:
    """Returns the network of a run and its config; see `load_run`."""
    folder = local(workdir)
    config = resolved(from_json(folder / CONFIG))
    if (folder / CLASSES).exists():
        run, state = restore_alone(config, folder)
    else:
        run, state = restore_run(config, folder)
    data = config.data
    preprocess = Preprocess(
        data.eval_size, data.eval_resize, data.interpolation, data.mean, data.std, data.uses_exif
    )
    variables = jax.device_get(state.eval_variables)
    return LoadedRun(run.model, variables, preprocess, run.train.classes), config


def restore_alone(config: Config, folder: pathlib.Path) -> tuple[Run, State]:
    """Returns a run without data on one device, and the state of its newest checkpoint.

    Args:
      config: the config of the run.
      folder: the workdir.

    Raises:
      InputError: there is no checkpoint that verifies, or no `classes.json` that belongs to it.
    """
    require_x64(config)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, devices=1))
    require_checkpoints(folder)
    with Checkpoints(folder / CHECKPOINTS, say=say) as checkpoints:
        saved, _ = read_provenance(checkpoints.provenance())
        classes = _classes(folder / CLASSES, saved.classes)
        # The structure of the state does not depend on the number of images.
        absent = Source("no data", "", classes, "", range(2**20), "image", "label", ())
        run = Run(config, absent, absent)
        return run, checkpoints.restore(run.abstract_state())


def _classes(path: pathlib.Path, digest: str) -> tuple[str, ...]:
    """Returns the names in classes.json, checked by their digest in the checkpoint."""
    try:
        names = tuple(map(str, json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{str(path)!r} can't be read ({error}): delete it and resume") from error
    if words_digest(names) != digest:
        raise InputError(
            f"{str(path)!r} has not the classes that the checkpoint was trained on: delete it and "
            "resume the run, which writes it again"
        )
    return names
