"""Configs in files: recipes in Python, and the config.json that a run leaves in its workdir."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import typing
from typing import Any

from flaxres.config import recipes
from flaxres.config.check import check, check_types
from flaxres.config.schema import Config
from flaxres.config.settings import flat
from flaxres.errors import InputError, nearest, unknown
from flaxres.paths import expanded


def load_config(name: str) -> Config:
    """Loads a recipe, or the config of a run.

    Args:
      name: path of a Python file that binds `config`, path of the config.json in a run's workdir,
        or the name of a shipped recipe.

    Raises:
      InputError: there is no such file or recipe, it binds no config, or a setting is of another
        type than its declaration.

    Examples:
      >>> load_config("cifar10/resnet20").model.name
      'resnet20'
    """
    file: pathlib.Path | None = pathlib.Path(name)
    if not os.path.isfile(name):  # noqa: PTH113 (false where it can't be read)
        file = recipes.find(name)
    if file is None:
        here = [str(path) for path in pathlib.Path("configs").rglob("*.py")]
        choices = [*here, *recipes.names()]
        if name.endswith((".py", ".json")) and not nearest(name, choices):
            raise InputError(
                f"config file {name!r} does not exist: give the path of a file, or a name that "
                "flaxres configs lists"
            )
        raise unknown("config file", name, choices)
    if file.suffix == ".json":
        return from_json(file)
    if file.suffix != ".py":
        raise InputError(
            f"config file {name!r} is neither a .py nor a .json file: give one that binds "
            "`config = flaxres.Config(...)`, or the config.json of a run"
        )
    spec = importlib.util.spec_from_file_location(f"flaxres_config_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        reason = _unknown_setting(error) or f"{type(error).__name__}: {error}"
        reason = " ".join(reason.split())
        raise InputError(f"config file {name!r} can't be read: {reason}") from error
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise InputError(f"config file {name!r} binds no `config = flaxres.Config(...)`")
    # The parser of options would print a warning about a value of another type.
    check_types(config)
    return config


def _unknown_setting(error: Exception) -> str:
    """Returns the reason of an error about a setting that a section does not have, else ''."""
    match = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    classes = (Config, *typing.get_type_hints(Config).values())
    sections = {section.__name__: section for section in classes}
    if match is None or (section := sections.get(match[1])) is None:
        return ""
    names = [field.name for field in dataclasses.fields(section)]
    near = nearest(match[2], names)
    hint = f": did you mean {' or '.join(near)}?" if near else ""
    return f"{match[1]} has no setting {match[2]!r}{hint}"


def variant(file: str, base: str, changes: dict[str, Any]) -> Config:
    """Returns another recipe with some settings changed, such as the depth.

    Args:
      file: `__file__` of the calling recipe.
      base: path of the other recipe's file from the folder of `file`.
      changes: full names of settings to values, `{"model.name": "resnet101"}`.

    Raises:
      InputError: a name is not a setting.

    Examples:
      >>> here = recipes.folder() / "cifar10" / "mine.py"
      >>> variant(str(here), "resnet20.py", {"train.seed": 7}).train.seed
      7
    """
    config = load_config(str(pathlib.Path(file).parent / base))
    for name, value in changes.items():
        section, _, field = name.partition(".")
        if name not in flat(config):
            raise unknown("setting", name, flat(config))
        changed = dataclasses.replace(getattr(config, section), **{field: value})
        config = dataclasses.replace(config, **{section: changed})
    return config


def resolved(config: Config) -> Config:
    """Returns the config as it is saved and compared.

    The machine's dtype and the use of EXIF are written out. Paths are absolute, so that a run can
    go on in another working folder, and have no `~`.
    """
    model, data, optim = config.model, config.data, config.optim
    dtype: Any = model.compute_dtype
    return dataclasses.replace(
        config,
        model=dataclasses.replace(model, dtype=dtype, weights=_absolute(model.weights)),
        data=dataclasses.replace(
            data,
            source=_absolute(data.source),
            data_dir=_absolute(data.data_dir),
            exif=data.uses_exif,
        ),
        optim=dataclasses.replace(optim, distill_weights=_absolute(optim.distill_weights)),
    )


def _absolute(path: str | None) -> str | None:
    """Returns an absolute path without `~`; leaves addresses such as gs://bucket as they are."""
    if not path or "://" in path:
        return path
    return os.path.abspath(expanded(path))  # noqa: PTH100 (keeps links)


def to_json(config: Config) -> str:
    """Returns the config as the text of config.json."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def _tuples(value: Any) -> Any:
    """Turns JSON's lists into tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def from_sections(sections: dict[str, Any]) -> Config:
    """Returns the config of JSON objects, one for each section; any exception if they are none."""
    types = typing.get_type_hints(Config)
    built = {
        name: types[name](**{key: _tuples(value) for key, value in fields.items()})
        for name, fields in sections.items()
    }
    return Config(**built)


def from_json(path: pathlib.Path) -> Config:
    """Reads the config.json of a run.

    Raises:
      InputError: the file does not exist, or is not a config of this version of flaxres.
    """
    try:
        config = from_sections(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise InputError(f"{str(path)!r} does not exist: give the workdir of a run") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{str(path)!r} is not a config of this version of flaxres: {error}"
        ) from error
    check(config)
    return config
