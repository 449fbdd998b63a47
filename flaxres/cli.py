"""The command line: `train.py` and the `flaxres` command. Thin: it reads words and calls the library."""

import dataclasses
import importlib.util
import os
import pathlib
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from flaxres.errors import InputError, unknown
from flaxres.training.config import Config, described, kinds, options

EXIT_REFUSED = 2


def load_config(path: str) -> Config:
    """The `config` that a Python file binds; raises InputError for a file that binds none."""
    file = pathlib.Path(path)
    if not file.is_file():
        near = sorted(str(p) for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise unknown("config file", path, near or [str(p) for p in pathlib.Path("configs").rglob("*.py")])
    spec = importlib.util.spec_from_file_location(f"flaxres_config_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"config file {path!r} can't be read: {type(error).__name__}: {' '.join(str(error).split())}") from error
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise InputError(f"config file {path!r} binds no `config = flaxres.Config(...)`")
    return config


def flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def parse_config(arguments: Sequence[str], default: pathlib.Path | str, program: str, workdir: str | None, description: str) -> tuple[Config, str]:
    """`--config FILE --workdir DIR --section.field VALUE ...` -> the config and the workdir; raises InputError, one line, for any mistake."""
    import tyro

    file, start = str(default), Config()
    chosen, rest = value_of(arguments, "--config")
    where, rest = value_of(rest, "--workdir")
    start = load_config(chosen or file)
    folder = where or workdir or f"runs/{pathlib.Path(chosen or file).stem}"

    @dataclasses.dataclass(frozen=True)
    class Options:
        config_file: Annotated[str, tyro.conf.arg(name="config", help="Python file that binds `config`.", metavar="FILE")] = chosen or file
        workdir: Annotated[str, tyro.conf.arg(help="Where the run writes, and goes on from.", metavar="DIR")] = folder
        config: Annotated[Config, tyro.conf.arg(name="")] = start

    Options.__doc__ = description
    names = {flag(field): kind for field, kind in kinds().items()}
    if not {"-h", "--help"} & set(rest):
        check_flags(rest, names)
        try_each(rest, names, start)
    return tyro.cli(Options, args=list(rest), default=Options(), prog=program, config=(tyro.conf.FlagConversionOff,)).config, folder


def value_of(arguments: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """The value of the flag `name`, `--name V` or `--name=V`, and the arguments without it; the last one counts."""
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


def groups(arguments: Sequence[str]) -> list[list[str]]:
    """The arguments, one list for each flag with its values."""
    found: list[list[str]] = []
    for word in arguments:
        if word.startswith("--"):
            found.append([word])
        elif found:
            found[-1].append(word)
        else:
            raise InputError(f"{word!r} is no option: options are --config, --workdir and --section.field, see --help")
    return found


def check_flags(arguments: Sequence[str], names: dict[str, Any]) -> None:
    for name, *_ in groups(arguments):
        name = name.partition("=")[0].replace("_", "-")
        if name not in names:
            raise unknown("option", name, [*names, "--config", "--workdir"])


def try_each(arguments: Sequence[str], names: dict[str, Any], start: Config) -> None:
    """Parses each option by itself, so that the one that can't be parsed is named."""
    import tyro

    for words in groups(arguments):
        name, _, value = words[0].partition("=")
        kind = names[name.replace("_", "-")]
        try:
            tyro.cli(Config, args=words, default=start, console_outputs=False, config=(tyro.conf.FlagConversionOff,))
        except SystemExit as error:
            given = " ".join([value, *words[1:]] if value else words[1:])
            if choices := options(kind):
                raise unknown(f"value of {name}", given, map(str, choices)) from error
            raise InputError(f"{name}={given!r}: the rule is {described(kind)}") from error


def refusing(function: Callable[[], Any]) -> int:
    """Runs `function`; an InputError becomes one line on stderr and exit code 2."""
    try:
        function()
    except InputError as error:
        print(f"flaxres: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_REFUSED
    return 0


def silence() -> None:
    """Keeps the libraries' chatter off the terminal; warnings and errors stay."""
    import logging

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("absl").setLevel(logging.ERROR)


def train(arguments: Sequence[str], default: pathlib.Path | str, program: str = "flaxres train") -> int:
    """Trains a config: see `flaxres.fit`."""

    def run() -> None:
        config, workdir = parse_config(arguments, default, program, None, "Train a residual network, or go on from the workdir's newest checkpoint.")
        silence()
        from flaxres.training.loop import fit

        fit(config, workdir)

    return refusing(run)
