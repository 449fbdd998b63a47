"""`flaxres serve`."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator, Sequence

from flaxres.cli._options import Parser
from flaxres.cli._process import keep_compiled, silence
from flaxres.errors import InputError
from flaxres.printing import say
from flaxres.serving.errors import StartError


def serve(arguments: Sequence[str]) -> None:
    """Serves a network by HTTP."""
    from flaxres.serving import main as serving

    parser = Parser(
        "flaxres serve",
        description="Serve a network by HTTP on this machine, with a page for browsers.",
    )
    parser.add_argument(
        "folder", metavar="FOLDER", help="a folder of `flaxres export`, or the workdir of a run"
    )
    serving.add_options(parser)
    chosen = parser.parse_args(arguments)
    silence()
    keep_compiled()
    try:
        options = serving.options_of(chosen)
        with _exported(pathlib.Path(chosen.folder)) as folder:
            serving.serve(folder, options)
    except StartError as error:
        raise InputError(str(error)) from error


@contextlib.contextmanager
def _exported(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the folder of an export; a run is exported into a temporary one."""
    from flaxres.serving.model import PROGRAM
    from flaxres.training.workdir import CONFIG

    if (folder / PROGRAM).exists() or not (folder / CONFIG).exists():
        yield folder
        return
    from flaxres.inference.export import export
    from flaxres.inference.predict import from_workdir

    with tempfile.TemporaryDirectory(prefix="flaxres-serve-") as exported:
        say(f"flaxres: exporting the run of {folder} ...")
        yield export(from_workdir(str(folder)), pathlib.Path(exported)).folder
