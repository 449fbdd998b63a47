"""Writes one HTML page about one or several runs, which needs no network and no other file."""

import base64
import dataclasses
import hashlib
import pathlib
import shlex
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from flaxres.config.schema import Config
from flaxres.config.settings import flat
from flaxres.data.choices import IN_PLACE
from flaxres.data.sources import require_prepared
from flaxres.diagnostics.sheet import draw_sheet
from flaxres.errors import InputError
from flaxres.report import confused
from flaxres.report.curves import COLOURS, draw_curves, draw_reliability
from flaxres.report.runs import RunFiles, is_multi_label

HERE = pathlib.Path(__file__).parent
# Rows of the table of classes; of more classes, those with the lowest scores are shown.
CLASSES = 1000


def render(runs: Sequence[RunFiles], command: Sequence[str], sheets: bool = True) -> str:
    """Returns the page.

    Args:
      runs: the runs; the page has their curves in one figure and a section for each.
      command: the words that make the page again.
      sheets: draw contact sheets of augmented training images, where the datasets are there.

    Raises:
      InputError: there are more runs than colours.
    """
    import jinja2
    from markupsafe import Markup

    if len(runs) > len(COLOURS):
        raise InputError(f"{len(runs)} runs: a page can show {len(COLOURS)}; name fewer")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "figure": _figure, "duration": _duration}
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        runs=[_section(run, colour) for run, colour in zip(runs, COLOURS, strict=False)],
        curves=[(title, Markup(svg)) for title, svg in draw_curves([r.metrics for r in runs])],
        settings=_settings([run.config for run in runs]),
        origin=_origin(runs),
        sheets=_sheets(runs) if sheets else [],
        command=shlex.join(command),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_digest=digest,
    )


def _section(run: RunFiles, colour: str) -> dict[str, Any]:
    """Returns what the page says about one run."""
    from markupsafe import Markup

    section: dict[str, Any] = {
        "name": run.name,
        "evaluate": run.evaluate,
        "colour": colour,
        "model": run.config.model.name,
        "data": run.config.data.name,
        "summary": run.summary,
        "step": max((row["step"] for row in run.metrics), default=0),
        "command": run.command,
        "again": run.again,
        "checkpoint": run.checkpoint,
        "evaluation": None,
        "others": run.others,
    }
    if (found := run.evaluation) is not None:
        first = "average_precision" if is_multi_label(found.scores) else "recall"
        rows = sorted(found.classes, key=lambda row: (row[first] is None, row[first] or 0))
        section["evaluation"] = {
            "scores": found.scores,
            "classes": rows[:CLASSES],
            "hidden": len(rows[CLASSES:]),
            "confusion": None if is_multi_label(found.scores) else confused.matrix(found),
            "mistakes": found.mistakes,
            "reliability": Markup(draw_reliability(found.scores["calibration"], colour)),
        }
    return section


def _settings(configs: Sequence[Config]) -> list[tuple[str, list[str], bool]]:
    """Returns the settings that are no defaults: name, values, and if the runs differ in it."""
    default, values = flat(Config()), [flat(config) for config in configs]
    return [
        (name, [repr(one[name]) for one in values], len({repr(one[name]) for one in values}) > 1)
        for name in default
        if any(one[name] != default[name] for one in values)
    ]


def _origin(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """Returns the provenance of the runs' checkpoints: names and values."""
    facts = [_facts(run) for run in runs]
    names = dict.fromkeys(name for one in facts for name in one)
    return [(name, [one.get(name, "") for one in facts]) for name in names]


def _facts(run: RunFiles) -> dict[str, str]:
    """Returns the provenance of a run's checkpoint, flat."""
    found = run.checkpoint
    refused = "; ".join(found["refused"])
    if "step" not in found:
        return {"checkpoint": f"none that verifies; {refused}" if refused else "none"}
    origin = found["provenance"]
    facts = {
        **({"refused checkpoints": refused} if refused else {}),
        "checkpoint": f"step {found['step']:,}, verified",
        "digest of the checkpoint": found["digest"],
        "digest of the training data": origin.get("data", ""),
        "evaluation data": origin.get("evaluation", ""),
        "digest of the classes": origin.get("classes", ""),
        "digest of the code": origin.get("code", ""),
        "devices": origin.get("devices", ""),
        "processes": origin.get("processes", ""),
        "convolutions": origin.get("convolutions", ""),
        "flaxres": origin.get("flaxres", ""),
        "Python": origin.get("python", ""),
        **(origin.get("packages") or {}),
        **(origin.get("jax_settings") or {}),
        "images that could not be decoded": len(origin.get("skipped", ())),
        "steps left out": origin.get("left_out", 0),
    }
    return {name: str(value) for name, value in facts.items()}


@dataclasses.dataclass(frozen=True)
class _Sheet:
    """A contact sheet of the runs with these names: the address of its image, or why it lacks."""

    names: str
    image: str | None
    problem: str = ""


def _sheets(runs: Sequence[RunFiles]) -> list[_Sheet]:
    """Draws a contact sheet for each group of runs with the same data and augmentation."""
    groups: dict[Any, list[RunFiles]] = {}
    for run in runs:
        config = run.config
        key = repr((config.data, config.augment, config.train.seed, config.optim.label_smoothing))
        groups.setdefault(key, []).append(run)
    return [
        _sheet(", ".join(run.name for run in group), group[0].config) for group in groups.values()
    ]


def _sheet(names: str, config: Config) -> _Sheet:
    """Draws the contact sheet of a config; never prepares or downloads its dataset."""
    data = config.data
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "sheet.webp"
        try:
            if data.copy and data.name not in IN_PLACE[1:]:
                require_prepared(data.name, data.source, data.data_dir, data.validation)
            draw_sheet(config, str(path))
        except InputError as error:
            return _Sheet(names, None, str(error))
        encoded = base64.b64encode(path.read_bytes()).decode()
    return _Sheet(names, f"data:image/webp;base64,{encoded}")


def _or_dash(form: Callable[[float], str]) -> Callable[[float | None], str]:
    """Returns a function that writes a dash for None."""
    return lambda value: "–" if value is None else form(value)


_percent = _or_dash(lambda value: f"{100 * value:.2f}%")
_figure = _or_dash(lambda value: f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}")


def _duration(seconds: float) -> str:
    """Returns seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
