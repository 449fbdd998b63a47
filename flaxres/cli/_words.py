"""Words of the command line: options by name, `--help`, and what a command prints.

It loads nothing, so that `flaxres --help` takes no time.
"""

import argparse
import importlib.metadata
import json
import sys
import typing
from collections.abc import Sequence
from typing import Any

from flaxres._version import __version__
from flaxres.errors import InputError


class Option(typing.NamedTuple):
    """An option of a command, beside the settings of a config.

    Attributes:
      name: e.g. '--seeds'.
      metavar: what stands for its value in `--help`; '' for an option without one.
      help: what it does.
    """

    name: str
    metavar: str
    help: str


JSON = Option("--json", "", "Print one JSON object.")


def version_line() -> str:
    """Returns the versions of flaxres and JAX, for `--version`; does not import JAX."""
    return f"flaxres {__version__} (jax {importlib.metadata.version('jax')})"


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Returns True if the words ask for `--help`."""
    return bool({"-h", "--help"} & set(arguments))


def value_of(arguments: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """Takes an option, `--name V` or `--name=V`, out of the words.

    Returns:
      Its last value, None without the option, and the other words.

    Examples:
      >>> value_of(["--out", "a.png", "--steps", "3"], "--out")
      ('a.png', ['--steps', '3'])
    """
    value, rest, i = None, [], 0
    while i < len(arguments):
        word, i = arguments[i], i + 1
        if word == name:
            if i == len(arguments):
                raise InputError(f"{name} needs a value")
            value, i = arguments[i], i + 1
        elif word.startswith(name + "="):
            value = word.partition("=")[2]
        else:
            rest.append(word)
    return value, rest


def count_of(arguments: Sequence[str], name: str, default: int) -> tuple[int, list[str]]:
    """Takes an option that counts something out of the words, as `value_of` does.

    Raises:
      InputError: it is no whole number above 0.

    Examples:
      >>> count_of(["--steps", "3"], "--steps", 20)
      (3, [])
    """
    value, rest = value_of(arguments, name)
    if value is not None and not (value.isdigit() and int(value)):
        raise InputError(f"{name}={value!r}: the rule is a whole number > 0")
    return int(value or default), rest


def show(as_json: bool, facts: dict[str, Any], lines: list[str]) -> None:
    """Prints `facts` as one JSON object, or the lines."""
    print(json.dumps(facts) if as_json else "\n".join(lines))


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are InputError, in one line.

    Options are not abbreviated; for an unknown one the nearest are named.
    """

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        super().__init__(prog, allow_abbrev=False, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._subparsers is None:  # else the command's own parser knows the options
            self._require_known(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def _require_known(self, words: Sequence[str]) -> None:
        """Raises InputError for an unknown option, before anything that is missing is named."""
        names = [name for action in self._actions for name in action.option_strings]
        for word in words:
            name = word.partition("=")[0]
            if name.startswith("--") and name != "--" and name not in names:
                from flaxres.cli._spelling import unknown_option

                raise unknown_option(name, names)

    def error(self, message: str) -> typing.NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")
