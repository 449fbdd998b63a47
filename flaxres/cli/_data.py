"""`flaxres data`: datasets."""

import argparse
import dataclasses
from collections.abc import Sequence

from flaxres.cli._options import Parser, show
from flaxres.cli._process import silence
from flaxres.config.files import load_config
from flaxres.config.schema import Config
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
        known = "digits, folder, cifar10, imagenet2012"
        others = "" if name == "prepare" else ", or any that TFDS has prepared"
        command.add_argument("name", help=known + others)
        command.add_argument(
            "--source",
            help="folder of <split>/<class>/*.jpg, ImageNet's tars, or CIFAR-10's archive",
        )
        command.add_argument("--data-dir", help="folder of prepared datasets (TFDS's own)")
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
        "--config", metavar="FILE", help="with --sheet: the config whose augmentation is drawn"
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
    from flaxres.data.prepare import prepare

    place, tally = prepare(
        chosen.name, chosen.source, chosen.data_dir, bad_images=chosen.bad_images
    )
    kinds_found = {split: dict(counts) for split, counts in tally.kinds.items()}
    show(
        chosen.json,
        {"path": str(place), "files": kinds_found, "refused": dict(tally.refused)},
        [*tally.lines(), f"prepared in {place}"],
    )


def data_info(chosen: argparse.Namespace) -> None:
    from flaxres.data.sources import describe

    if chosen.config and not chosen.sheet:
        raise InputError("--config needs --sheet: it says what is drawn")
    facts = describe(chosen.name, chosen.source, chosen.data_dir)
    lines = [f"path: {facts['path']}", f"version: {facts['version']}"]
    for split, known in facts["splits"].items():
        digest = (
            f", sha256 {known['sha256'][:16]}"
            if known["sha256"]
            else ", no digest: TFDS prepared it"
        )
        lines.append(
            f"split {split}: {known['examples']:,} images, {known['bytes'] / 2**20:,.1f} MiB in {known['shards']} files{digest}"
        )
    classes = facts["classes"]
    lines.append(
        f"{len(classes)} classes: "
        + ", ".join(classes[:20])
        + (f", and {len(classes) - 20} more" if len(classes) > 20 else "")
    )
    if chosen.sheet:
        from flaxres.diagnostics.sheet import draw_sheet

        config = load_config(chosen.config) if chosen.config else Config()
        split = (
            config.data.train_split
            if config.data.train_split.partition("[")[0] in facts["splits"]
            else next(iter(facts["splits"]))
        )
        given = {
            "name": chosen.name,
            "source": chosen.source,
            "data_dir": chosen.data_dir,
            "train_split": split,
        }
        draw_sheet(
            dataclasses.replace(config, data=dataclasses.replace(config.data, **given)),
            chosen.sheet,
        )
        facts["sheet"] = chosen.sheet
        lines.append(f"drew {chosen.sheet}")
    show(chosen.json, facts, lines)


def data_verify(chosen: argparse.Namespace) -> None:
    from flaxres.data.sources import verify

    verdict = verify(chosen.name, chosen.source, chosen.data_dir, chosen.decode)
    sound = sum(state == "sound" for state in verdict.files.values())
    files = (
        f"files: {sound} of {len(verdict.files)} agree with their digests"
        if verdict.files
        else "files: no digests, TFDS prepared this dataset"
    )
    lines = [files] + [
        f"{name}: " + ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
        for name, kinds in verdict.kinds.items()
    ]
    show(chosen.json, dataclasses.asdict(verdict), lines + verdict.problems)
    if verdict.problems:
        raise InputError(
            f"{len(verdict.problems)} problems, the first: {verdict.problems[0]}; delete the dataset's folder and prepare it again"
        )


def data_shrink(chosen: argparse.Namespace) -> None:
    from flaxres.data.prepare import shrink
    from flaxres.data.sources import open_splits

    sources = {
        source.name.rpartition("/")[2]: source
        for source in open_splits(chosen.name, (), chosen.source, chosen.data_dir)
    }
    name, place, tally = shrink(sources, chosen.short_side, chosen.quality, chosen.data_dir)
    kinds_found = {split: dict(counts) for split, counts in tally.kinds.items()}
    facts = {"name": name, "path": str(place), "images": kinds_found}
    show(
        chosen.json,
        facts,
        [
            *tally.lines(),
            f"{'written to' if tally.kinds else 'already there:'} {place}",
            f"train on it with: --data.name {name}",
        ],
    )


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
