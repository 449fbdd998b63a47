"""`flaxres serve`."""

import argparse
import typing
from collections.abc import Callable, Sequence

from flaxres.cli._predict import add_8_bits, add_origin, in_8_bits, predictor_of
from flaxres.cli._process import keep_compiled, keep_memory, silence, use_compiler
from flaxres.cli._words import Parser
from flaxres.errors import InputError
from flaxres.serving.errors import StartError

if typing.TYPE_CHECKING:
    from flaxres.inference.predict import Predictor
    from flaxres.serving.model import Model


def serve(arguments: Sequence[str]) -> None:
    """Serves a network by HTTP."""
    from flaxres.serving import main as serving

    parser = Parser(
        "flaxres serve",
        description="Serve a network by HTTP on this machine, with a page for browsers: an export, "
        "a run, a file of weights, or a pretrained tag of timm.",
    )
    parser.add_argument(
        "folder",
        nargs="?",
        metavar="FOLDER",
        help="a folder of `flaxres export`, or the workdir of a run",
    )
    add_origin(parser, required=False)
    add_8_bits(parser)
    serving.add_options(parser)
    chosen = parser.parse_args(arguments)
    keep_memory()
    silence()
    keep_compiled()
    try:
        options = serving.options_of(chosen)
        serving.serve(_network(chosen), options)
    except StartError as error:
        raise InputError(str(error)) from error


def _network(chosen: argparse.Namespace) -> "Callable[[], Model]":
    """Returns a function that loads the network to serve.

    Raises:
      InputError: none or several are chosen, or FOLDER has no network.
    """
    origins = {f"--{name}": getattr(chosen, name) for name in ("workdir", "weights", "tag")}
    origins = {"FOLDER": chosen.folder} | origins
    given = [f"{name} {value!r}" for name, value in origins.items() if value is not None]
    if not given:
        raise InputError(f"no network: give one of {', '.join(origins)}")
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)}: give one of them; the port goes by --port")
    if chosen.folder is None:
        return lambda: _live(predictor_of(chosen), chosen.int8)
    from flaxres.serving.main import loading
    from flaxres.serving.model import PROGRAM
    from flaxres.training.staging import local
    from flaxres.training.workdir import CONFIG

    folder = local(chosen.folder)
    if (folder / PROGRAM).exists():
        if chosen.int8 is not None:
            raise InputError(
                f"--int8 can't change the exported program of {chosen.folder!r}: give the run's "
                "--workdir, or --weights or --tag"
            )
        return loading(folder)
    if not (folder / CONFIG).exists():
        raise InputError(
            f"{chosen.folder!r} is no folder of `flaxres export` and no workdir of a run: give one "
            "of them, or --weights or --tag"
        )
    from flaxres.inference.predict import from_workdir

    return lambda: _live(from_workdir(chosen.folder), chosen.int8)


def _live(predictor: "Predictor", typical: str | None) -> "Model":
    """Returns the network of a predictor as the server takes it."""
    from flaxres.inference.served import served

    use_compiler()
    return served(in_8_bits(predictor, typical))
