"""Settings of a config as options of the command line, and their errors."""

import contextlib
import dataclasses
import io
import os
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any

from flaxres.cli._spelling import respelt, unknown_option
from flaxres.cli._words import Option, asks_for_help, value_of
from flaxres.config.files import from_json, load_config
from flaxres.config.kinds import described, options
from flaxres.config.schema import Config
from flaxres.config.settings import SETTINGS
from flaxres.errors import InputError, unknown
from flaxres.paths import expanded
from flaxres.remote import is_address
from flaxres.training.workdir import CONFIG


def flag(field: str) -> str:
    """Returns the option of a setting.

    Examples:
      >>> flag("optim.learning_rate")
      '--optim.learning-rate'
    """
    return "--" + field.replace("_", "-")


def parse_run(
    arguments: Sequence[str],
    default: str | None,
    program: str,
    description: str,
    others: Sequence[Option] = (),
) -> tuple[Config, str]:
    """Parses `--config FILE --workdir DIR --section.field VALUE ...`.

    Args:
      arguments: the words, without the options of the command.
      default: a recipe, for where neither `--config` nor a run in the workdir gives the config;
        None requires one of them.
      program: the name of the command, for `--help`.
      description: of the command, for `--help`.
      others: the options of the command, for `--help` and for suggestions.

    Returns:
      The config and the workdir.

    Raises:
      InputError: any mistake, in one line.
    """
    import tyro

    chosen, rest = value_of(arguments, "--config")
    where, rest = value_of(rest, "--workdir")
    kinds = {flag(field): declared.kind for field, declared in SETTINGS.items()}
    if not asks_for_help(rest):
        _require_known(rest, [*kinds, "--config", "--workdir", *(other.name for other in others)])
    if where and not is_address(where):
        where = str(expanded(where))
    file, start = _first_config(chosen, where, default, asks_for_help(rest))
    folder = where or f"runs/{pathlib.Path(file).stem}"

    options_ = _options_class(file, folder, start, others, needed=default is None)
    options_.__doc__ = description
    if not asks_for_help(rest):
        _try_each(rest, kinds, start)
    parsed = tyro.cli(
        options_, args=rest, default=options_(), prog=program, config=(tyro.conf.FlagConversionOff,)
    )
    return parsed.config, folder


def _options_class(
    file: str, folder: str, start: Config, others: Sequence[Option], needed: bool
) -> Any:
    """Returns the class of a command's options, for tyro.

    Args:
      file, folder, start: defaults of the config file, of the workdir and of the settings.
      others: options beside the settings.
      needed: a config or a workdir must be given.
    """
    import tyro

    # The hints say what no default can.
    hints = ("(default: that of the run)", "(needed without --config)")
    config_hint, workdir_hint = hints if needed else (None, None)
    fields: list[tuple[str, Any, Any]] = [
        (
            "config_file",
            Annotated[
                str,
                tyro.conf.arg(
                    name="config",
                    help="A recipe of `flaxres configs`, or a Python file that binds `config`.",
                    metavar="FILE",
                    help_behavior_hint=config_hint,
                ),
            ],
            file,
        ),
        (
            "workdir",
            Annotated[
                str,
                tyro.conf.arg(
                    help="The folder of the run, or its address (gs://, s3://).",
                    metavar="DIR",
                    help_behavior_hint=workdir_hint,
                ),
            ],
            folder,
        ),
        *(
            (
                f"other{i}",
                Annotated[
                    str,
                    tyro.conf.arg(
                        name=other.name.lstrip("-"),
                        help=other.help,
                        metavar=other.metavar,
                        help_behavior_hint="",
                    ),
                ],
                "",
            )
            for i, other in enumerate(others)
        ),
        ("config", Annotated[Config, tyro.conf.arg(name="")], start),
    ]
    return dataclasses.make_dataclass("Options", fields, frozen=True)


def _first_config(
    chosen: str | None, where: str | None, default: str | None, for_help: bool
) -> tuple[str, Config]:
    """Returns the file of the config that options change, and the config.

    It is the chosen one, that of the run in the workdir `where`, or the default, in this order.
    """
    folder = pathlib.Path(where or "")
    if chosen is None and where and is_address(where):
        from flaxres.training.staging import local

        folder = local(where, "none")
    saved = folder / CONFIG
    has_run = os.path.exists(saved)  # noqa: PTH110 (Path.exists raises for a closed folder)
    if chosen is not None or (default is not None and not (where and has_run)):
        file = chosen or str(default)
        return file, load_config(file)
    if for_help and not has_run:
        return str(saved), Config()
    if not where:
        raise InputError(
            "no config: give --workdir of a run, or --config NAME (flaxres configs lists them)"
        )
    if is_address(where) and not has_run:
        raise InputError(f"{where!r} holds no run: give the workdir of one")
    return str(saved), from_json(saved)


def groups(arguments: Sequence[str]) -> list[list[str]]:
    """Returns one list for each option, with its values."""
    options_: list[list[str]] = []
    for word in arguments:
        if word.startswith("--"):
            options_.append([word])
        elif options_:
            options_[-1].append(word)
        else:
            raise InputError(
                f"{word!r} is no option: options are --config, --workdir and --section.field, see "
                "--help"
            )
    return options_


def _require_known(arguments: Sequence[str], names: Sequence[str]) -> None:
    """Raises InputError for an option that is not among the names."""
    for words in groups(arguments):
        name = words[0].partition("=")[0]
        if name.replace("_", "-") not in names:
            raise unknown_option(name, names)


def _try_each(arguments: Sequence[str], kinds: dict[str, Any], start: Config) -> None:
    """Parses each option separately, so that the error names the one that can't be parsed.

    Args:
      arguments: the words.
      kinds: option -> type.
      start: the config that the options change.
    """
    for words in groups(arguments):
        name, _, value = words[0].partition("=")
        if not _parses(words, start):
            kind = kinds[name.replace("_", "-")]
            raise _unparsed(
                name, " ".join([value, *words[1:]] if value else words[1:]), kind, start
            )


def _parses(words: Sequence[str], start: Config) -> bool:
    """Returns whether an option with its values can be parsed."""
    import tyro

    try:
        with contextlib.redirect_stderr(io.StringIO()):
            tyro.cli(
                Config,
                args=words,
                default=start,
                console_outputs=False,
                config=(tyro.conf.FlagConversionOff,),
            )
    except SystemExit:
        return False
    return True


def _unparsed(name: str, given: str, kind: Any, start: Config) -> InputError:
    """Returns the error for the value of an option that can't be parsed."""
    meant = respelt(given, lambda text: _parses([name, *text.split()], start))
    if meant is not None:
        meaning = f"{name}={meant}" if meant.count(" ") == 0 else f"{name} {meant}"
        return InputError(
            f"{name}={given!r}: the rule is {described(kind)}; did you mean {meaning}?"
        )
    if choices := options(kind):
        return unknown(f"value of {name}", given, map(str, choices))
    return InputError(f"{name}={given!r}: the rule is {described(kind)}")
