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
    """Prepares datasets as ArrayRecord, tells about them, checks them, and makes their images smaller."""
    parser = Parser(
        "flaxres data", description="Prepare datasets as ArrayRecord, and look at what is there."
    )
    texts = {
        data_prepare: "write a dataset as ArrayRecord, once",
        data_info: "splits, classes, sizes and digests of a prepared dataset; with --sheet a picture of what the network sees of it",
        data_verify: "compare a prepared dataset with the digests of its files, and read every record",
        data_shrink: "write a prepared dataset again with smaller images, which train faster",
    }
    names = {function: function.__name__.removeprefix("data_") for function in texts}
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="{" + ",".join(names.values()) + "}"
    )
    parsers = {}
    for function, text in texts.items():
        name = names[function]
        command = parsers[name] = commands.add_parser(
            name, help=text.partition(";")[0], description=text
        )
        command.set_defaults(function=function)
        command.add_argument(
            "name",
            help="digits, folder, cifar10, imagenet2012"
            + (", or any that TFDS has prepared" if name != "prepare" else ""),
        )
        command.add_argument(
            "--source",
            help="the folder of <split>/<class>/*.jpg, ImageNet's tars, or CIFAR-10's archive",
        )
        command.add_argument("--data-dir", help="where prepared datasets are (TFDS's own folder)")
        command.add_argument("--json", action="store_true", help="print one JSON object")
    parsers["prepare"].add_argument(
        "--bad-images",
        choices=("skip", "error"),
        default="skip",
        help="what to do with an image that can't be decoded (skip)",
    )
    parsers["info"].add_argument(
        "--sheet", metavar="PNG", help="draw a contact sheet of augmented samples"
    )
    parsers["info"].add_argument(
        "--config",
        metavar="FILE",
        help="with --sheet: the config whose crops and augmentation are drawn",
    )
    parsers["verify"].add_argument("--decode", action="store_true", help="decode every image too")
    parsers["shrink"].add_argument(
        "--short-side",
        type=int,
        default=256,
        metavar="PIXELS",
        help="of images that are larger (256)",
    )
    parsers["shrink"].add_argument(
        "--quality", type=int, default=90, help="of their JPEGs, 1 to 100 (90)"
    )
    chosen = parser.parse_args(arguments)
    silence()
    chosen.function(chosen)


def data_prepare(chosen: argparse.Namespace) -> None:
    from flaxres.data.prepare import prepare

    place, tally = prepare(
        chosen.name, chosen.source, chosen.data_dir, bad_images=chosen.bad_images
    )
    counts = {split: dict(numbers) for split, numbers in tally.counts.items()}
    show(
        chosen.json,
        {"path": str(place), "files": counts, "refused": dict(tally.refused)},
        [*tally.lines(), f"prepared in {place}"],
    )


def data_info(chosen: argparse.Namespace) -> None:
    from flaxres.data.datasets import ensure_prepared
    from flaxres.data.sources import describe

    if chosen.config and not chosen.sheet:
        raise InputError("--config needs --sheet: it says what is drawn")
    ensure_prepared(chosen.name, chosen.source, chosen.data_dir)
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
    from flaxres.data.datasets import ensure_prepared
    from flaxres.data.sources import verify

    ensure_prepared(chosen.name, chosen.source, chosen.data_dir)
    verdict = verify(chosen.name, chosen.source, chosen.data_dir, chosen.decode)
    sound = sum(state == "sound" for state in verdict.files.values())
    files = (
        f"files: {sound} of {len(verdict.files)} agree with their digests"
        if verdict.files
        else "files: no digests, TFDS prepared this dataset"
    )
    lines = [files] + [
        f"{name}: " + ", ".join(f"{count:,} {result}" for result, count in counts.items())
        for name, counts in verdict.counts.items()
    ]
    report = {
        "records": verdict.records,
        "kinds": verdict.counts,
        "files": verdict.files,
        "problems": verdict.problems,
    }
    show(chosen.json, report, lines + verdict.problems)
    if verdict.problems:
        raise InputError(
            f"{len(verdict.problems)} problems, the first: {verdict.problems[0]}; delete the dataset's folder and prepare it again"
        )


def data_shrink(chosen: argparse.Namespace) -> None:
    from flaxres.data.datasets import open_or_prepare
    from flaxres.data.prepare import shrink

    sources = {
        source.name.rpartition("/")[2]: source
        for source in open_or_prepare(chosen.name, (), chosen.source, chosen.data_dir)
    }
    name, place, tally = shrink(sources, chosen.short_side, chosen.quality, chosen.data_dir)
    counts = {split: dict(numbers) for split, numbers in tally.counts.items()}
    facts = {"name": name, "path": str(place), "images": counts}
    show(
        chosen.json,
        facts,
        [
            *tally.lines(),
            f"{'written to' if tally.counts else 'already there:'} {place}",
            f"train on it with: --data.name {name}",
        ],
    )
