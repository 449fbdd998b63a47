"""`flaxres train` and `flaxres checkpoints`."""

from collections.abc import Sequence

from flaxres import garbage
from flaxres.cli._options import parse_run
from flaxres.cli._process import PROCESSES, joined, silence
from flaxres.cli._words import Parser, show, version_line
from flaxres.errors import InputError


def train(arguments: Sequence[str], program: str = "flaxres train") -> None:
    """Trains a config, by default the digits; see `flaxres.fit`."""
    if "--version" in arguments:
        print(version_line())
        return
    arguments = joined(arguments)
    garbage.delay()
    try:
        config, workdir = parse_run(
            arguments,
            "digits",
            program,
            "Train a residual network, or resume from the workdir's newest checkpoint.",
            PROCESSES,
        )
        silence()
        from flaxres.training.loop import fit

        fit(config, workdir)
    finally:
        garbage.resume()


def checkpoints(arguments: Sequence[str]) -> None:
    """Lists the checkpoints of a run and verifies each."""
    parser = Parser(
        "flaxres checkpoints",
        description="List a run's checkpoints, verify every byte, and show their provenance.",
    )
    parser.add_argument("workdir", metavar="WORKDIR")
    parser.add_argument(
        "--provenance",
        action="store_true",
        help="show the code, libraries, data, flags and devices of each",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = parser.parse_args(arguments)
    silence()
    from flaxres.training.staging import local
    from flaxres.training.verification import REFUSED, read_provenance, survey

    folder = local(chosen.workdir, "all") / "checkpoints"
    if not folder.is_dir():
        raise InputError(
            f"workdir {chosen.workdir!r} has no checkpoints: give the workdir of a run"
        )
    facts, lines = [], []
    for saved in survey(folder):
        size = sum(path.stat().st_size for path in saved.path.rglob("*") if path.is_file())
        origin = {} if saved.problem else read_provenance(saved.path)
        facts.append(
            {"step": saved.step, "bytes": size, "problem": saved.problem, "provenance": origin}
        )
        lines.append(
            f"step {saved.step:>9,}  {size / 2**20:>9,.1f} MiB  {saved.problem or 'sound'}"
        )
        if chosen.provenance:
            lines += [f"    {key}: {value}" for key, value in origin.items()]
    aside = sorted(path.name for path in (folder.parent / REFUSED).glob("*"))
    if aside:
        lines.append(f"set aside in {folder.parent / REFUSED}: {', '.join(aside)}")
    show(chosen.json, {"checkpoints": facts, "set_aside": aside}, lines or ["no checkpoint"])
    if problems := [fact for fact in facts if fact["problem"]]:
        raise InputError(
            f"{len(problems)} of {len(facts)} checkpoints do not verify; training resumes from the "
            "newest that does"
        )
