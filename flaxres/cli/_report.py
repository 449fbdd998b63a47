"""`flaxres report`."""

import pathlib
from collections.abc import Sequence

from flaxres.cli._process import silence
from flaxres.cli._words import Parser
from flaxres.errors import InputError
from flaxres.paths import expanded, replacing


def report(arguments: Sequence[str]) -> None:
    """Writes an HTML page about one or several runs."""
    parser = Parser(
        "flaxres report",
        description="Write one HTML page about runs: curves, evaluation, provenance, commands. It "
        "needs no network. Run flaxres evaluate --full before, so that it shows the mistakes.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="workdirs of runs")
    parser.add_argument(
        "--out", metavar="HTML", help="the file (report.html in the workdir of the first run)"
    )
    parser.add_argument(
        "--no-sheet",
        dest="sheet",
        action="store_false",
        help="leave out the contact sheet of training images",
    )
    chosen = parser.parse_args(arguments)
    silence()
    from flaxres.report.page import render
    from flaxres.report.runs import read_runs
    from flaxres.training.staging import publish, shown

    runs = read_runs(chosen.runs)
    target = runs[0].path / "report.html" if chosen.out is None else expanded(chosen.out)
    if not target.parent.is_dir():
        raise _unwritable(target, "no such folder")
    text = render(runs, ["flaxres", "report", *arguments], chosen.sheet)
    # A name may hold what UTF-8 does not have.
    content = text.encode("utf-8", "replace")
    _write(target, content)
    place = str(target)
    if chosen.out is None:
        publish(chosen.runs[0], target)
        place = f"{shown(target.parent)}/{target.name}"
    print(f"wrote {place} ({len(content) / 1000:,.0f} kB)")


def _write(target: pathlib.Path, content: bytes) -> None:
    """Writes the page in one step."""
    try:
        with replacing(target) as part:
            part.write_bytes(content)
    except (OSError, ValueError) as error:
        raise _unwritable(target, error) from error


def _unwritable(target: pathlib.Path, reason: object) -> InputError:
    return InputError(
        f"--out {str(target)!r} can't be written ({reason}): give a file in a folder that exists"
    )
