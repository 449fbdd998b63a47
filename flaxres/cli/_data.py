"""`flaxres data`: datasets."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from flaxres.cli._process import silence
from flaxres.cli._words import Parser, show
from flaxres.config.files import load_config
from flaxres.config.schema import Config
from flaxres.data.choices import IN_PLACE
from flaxres.errors import InputError


def data(arguments: Sequence[str]) -> None:
    """Prepares, describes, verifies and shrinks datasets."""
    parser = Parser(
        "flaxres data", description="Prepare datasets as ArrayRecord, and inspect them."
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="{" + ",".join(COMMANDS) + "}"
    )
    for name, (function, text, add_options) in COMMANDS.items():
        command = commands.add_parser(name, help=text.partition(";")[0], description=text)
        command.set_defaults(function=function)
        known = ["digits", "folder", "cifar10", "imagenet2012"]
        if name != "prepare":
            known += [*IN_PLACE[1:], "or any that TFDS has prepared"]
        command.add_argument("name", help=", ".join(known))
        command.add_argument(
            "--source",
            help="folder of <split>/<class>/*.jpg, of Parquet or TFRecord files, of WebDataset's "
            "or ImageNet's tars, of lists <split>.csv or <split>.jsonl, or of MNIST's files, or "
            "CIFAR-10's archive",
        )
        command.add_argument("--data-dir", help="folder of prepared datasets (TFDS's own)")
        command.add_argument(
            "--validation",
            type=float,
            default=0.0,
            metavar="SHARE",
            help="share of each class of a folder's train that becomes val (0)",
        )
        if name != "prepare":
            command.add_argument(
                "--no-copy",
                dest="copy",
                action="store_false",
                help="read a folder in place, without preparing it (data.copy)",
            )
        if name in ("info", "verify"):
            command.add_argument(
                "--multi-label",
                action="store_true",
                help="images of a manifest or of Parquet have any number of labels",
            )
        command.add_argument("--json", action="store_true", help="print one JSON object")
        add_options(command)
    chosen = parser.parse_args(arguments)
    silence()
    chosen.function(chosen)


def _prepare_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--bad-images",
        choices=("skip", "error"),
        default="skip",
        help="treatment of an image that can't be decoded (skip)",
    )


def _info_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--sheet", metavar="PNG", help="draw a contact sheet of augmented samples")
    command.add_argument(
        "--config",
        metavar="FILE",
        help="with --sheet: the config whose augmentation is drawn, or the config.json of a run",
    )


def _verify_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--decode", action="store_true", help="decode every image too")


def _shrink_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--short-side",
        type=int,
        default=256,
        metavar="PIXELS",
        help="short side of images that are larger (256)",
    )
    command.add_argument(
        "--quality", type=int, default=90, help="quality of their JPEGs, 1 to 100 (90)"
    )


def data_prepare(chosen: argparse.Namespace) -> None:
    """Prepares a dataset."""
    from flaxres.data.prepare import prepare

    place, tally = prepare(
        chosen.name, chosen.source, chosen.data_dir, (), chosen.bad_images, chosen.validation
    )
    facts = {"path": str(place), "files": _plain(tally.counts), "refused": dict(tally.refused)}
    show(chosen.json, facts, [*tally.lines(), f"prepared in {place}"])


def data_info(chosen: argparse.Namespace) -> None:
    """Describes a dataset, which is prepared first if it is one of ours."""
    from flaxres.data.datasets import describe

    if chosen.config and not chosen.sheet:
        raise InputError("--config needs --sheet: it gives the augmentation to draw")
    facts = describe(
        chosen.name,
        chosen.source,
        chosen.data_dir,
        chosen.validation,
        chosen.copy,
        chosen.multi_label,
    )
    in_place = facts["version"] is None
    lines = [f"path: {facts['path']}", f"version: {facts['version']}"]
    if in_place:
        lines[1] = f"digest: {facts['digest'][:16]}"
    for split, known in facts["splits"].items():
        digest = "read in place" if in_place else "no digest: TFDS prepared it"
        if known["sha256"]:
            digest = f"sha256 {known['sha256'][:16]}"
        lines.append(
            f"split {split}: {known['examples']:,} images, {known['bytes'] / 2**20:,.1f} MiB in "
            f"{known['shards']} files, {digest}"
        )
    classes = facts["classes"]
    more = f", and {len(classes) - 20} more" if len(classes) > 20 else ""
    lines.append(f"{len(classes)} classes: {', '.join(classes[:20])}{more}")
    lines += _report_lines(facts["report"])
    if chosen.sheet:
        _draw_sheet(chosen, list(facts["splits"]))
        facts["sheet"] = chosen.sheet
        lines.append(f"drew {chosen.sheet}")
    show(chosen.json, facts, lines)


def _report_lines(report: Mapping[str, Any]) -> list[str]:
    """Returns what the preparation counted and left out."""
    lines = []
    for split, counts in report.get("files", {}).items():
        lines.append(
            f"files of {split}: {', '.join(f'{n:,} {name}' for name, n in counts.items())}"
        )
    for split, classes in report.get("classes", {}).items():
        numbers = (f"{label} {number:,}" for label, number in [*classes.items()][:100])
        more = f", and {len(classes) - 100} more classes" if len(classes) > 100 else ""
        lines.append(f"images of {split}: {', '.join(numbers)}{more}")
    lines += [f"refused {name}: {reason}" for name, reason in report.get("refused", {}).items()]
    return lines + list(report.get("notes", []))


def _draw_sheet(chosen: argparse.Namespace, splits: list[str]) -> None:
    """Draws the contact sheet of the config's training split, or of the dataset's first one."""
    from flaxres.diagnostics.sheet import draw_sheet

    config = load_config(chosen.config) if chosen.config else Config()
    split = config.data.train_split
    data = dataclasses.replace(
        config.data,
        name=chosen.name,
        source=chosen.source,
        data_dir=chosen.data_dir,
        validation=chosen.validation,
        copy=chosen.copy,
        multi_label=chosen.multi_label,
        train_split=split if split.partition("[")[0] in splits else splits[0],
    )
    optim = config.optim
    if data.multi_label and optim.loss == "cross_entropy":
        optim = dataclasses.replace(optim, loss="binary")
    draw_sheet(dataclasses.replace(config, data=data, optim=optim), chosen.sheet)


def data_verify(chosen: argparse.Namespace) -> None:
    """Verifies a dataset."""
    from flaxres.data.datasets import verify

    verdict, remedy = verify(
        chosen.name,
        chosen.source,
        chosen.data_dir,
        chosen.decode,
        chosen.validation,
        chosen.copy,
        chosen.multi_label,
    )
    lines = ["files: no digests, flaxres did not write this dataset"]
    if verdict.files:
        sound = sum(state == "sound" for state in verdict.files.values())
        lines = [f"files: {sound} of {len(verdict.files)} agree with their digests"]
    for name, counts in verdict.counts.items():
        results = (f"{count:,} {result}" for result, count in counts.items())
        lines.append(f"{name}: {', '.join(results)}")
    report = {
        "records": verdict.records,
        "kinds": verdict.counts,
        "files": verdict.files,
        "problems": verdict.problems,
    }
    show(chosen.json, report, lines + verdict.problems)
    if verdict.problems:
        first, count = verdict.problems[0], len(verdict.problems)
        raise InputError(f"{f'{count} problems, the first: ' * (count > 1)}{first}; {remedy}")


def data_shrink(chosen: argparse.Namespace) -> None:
    """Shrinks a dataset."""
    from flaxres.data.datasets import open_or_prepare
    from flaxres.data.prepare import shrink

    splits = open_or_prepare(
        chosen.name,
        (),
        chosen.source,
        chosen.data_dir,
        validation=chosen.validation,
        copy=chosen.copy,
    )
    sources = {source.name.rpartition("/")[2]: source for source in splits}
    name, place, tally = shrink(sources, chosen.short_side, chosen.quality, chosen.data_dir)
    facts = {"name": name, "path": str(place), "images": _plain(tally.counts)}
    done = "written to" if tally.counts else "already there:"
    hint = f"train on it with: --data.name {name}"
    show(chosen.json, facts, [*tally.lines(), f"{done} {place}", hint])


def _plain(counts: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    return {split: dict(numbers) for split, numbers in counts.items()}


# Name -> function, description, and a function that adds the command's own options.
COMMANDS = {
    "prepare": (data_prepare, "write a dataset as ArrayRecord, once", _prepare_options),
    "info": (
        data_info,
        "show splits, classes, sizes and digests of a prepared dataset; with --sheet also draw "
        "some of its images as the network gets them",
        _info_options,
    ),
    "verify": (
        data_verify,
        "compare a prepared dataset with the digests of its files, and read every record",
        _verify_options,
    ),
    "shrink": (
        data_shrink,
        "write a prepared dataset again with smaller images, which train faster",
        _shrink_options,
    ),
}
