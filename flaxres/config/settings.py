"""All settings of a config by their full names."""

import dataclasses
import typing
from typing import Any

from flaxres.config import _rules as rules
from flaxres.config._rules import Facts
from flaxres.config.schema import Config


@dataclasses.dataclass(frozen=True)
class Setting:
    """The type of a setting, and the `Facts` that its field declares."""

    kind: Any
    facts: Facts


def _declared() -> dict[str, Setting]:
    table = {}
    for name, section in typing.get_type_hints(Config).items():
        types = typing.get_type_hints(section)
        for field in dataclasses.fields(section):
            table[f"{name}.{field.name}"] = Setting(types[field.name], field.metadata[rules.FACTS])
    return table


SETTINGS = _declared()
"""All settings by their full names, e.g. `SETTINGS["optim.learning_rate"]`."""


def flat(config: Config) -> dict[str, Any]:
    """Returns all values by full name: `{"optim.learning_rate": 0.1, ...}`."""
    return {
        f"{section.name}.{field.name}": getattr(getattr(config, section.name), field.name)
        for section in dataclasses.fields(config)
        for field in dataclasses.fields(getattr(config, section.name))
    }


def differences(old: Config, new: Config, measuring: bool = False) -> list[str]:
    """Lists the settings that differ and that a resumed run may not change.

    The result is `["optim.learning_rate: 0.1 -> 0.3", ...]`, in the order of declaration. With
    `measuring`, settings that only say how the model is measured may differ, too, and with
    `train.extend` in `new` the length of the run.
    """
    before, after = flat(old), flat(new)
    return [
        f"{name}: {before[name]!r} -> {after[name]!r}"
        for name, declared in SETTINGS.items()
        if before[name] != after[name]
        and not declared.facts.resume
        and not (measuring and declared.facts.measure)
        and not (new.train.extend and declared.facts.length)
    ]
