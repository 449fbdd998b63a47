"""`flaxres predict`, `flaxres export` and `flaxres convert`."""

import argparse
import csv
import dataclasses
import itertools
import json
import os
import sys
import typing
from collections.abc import Iterator, Sequence

from flaxres.cli._process import keep_memory, silence, use_compiler
from flaxres.cli._words import Parser, show
from flaxres.errors import InputError
from flaxres.paths import expanded
from flaxres.printing import say

if typing.TYPE_CHECKING:
    from flaxres.data.preprocess import Preprocess
    from flaxres.inference.predict import Best, Predictor


def add_origin(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds the options that choose a network with its weights."""
    origin = parser.add_mutually_exclusive_group(required=required)
    origin.add_argument("--workdir", help="a run of train.py: its newest checkpoint")
    origin.add_argument(
        "--weights", help="a file of weights; needs --model unless flaxres wrote it"
    )
    origin.add_argument("--tag", help="a tag on the hub, e.g. resnet50.a1_in1k")
    parser.add_argument("--model", help="the network that --weights are of")
    parser.add_argument(
        "--size",
        type=int,
        help="with --weights: pixels of a side (the file's; else 224, or 32 for CIFAR networks)",
    )
    parser.add_argument("--classes", help="with --weights: a text file with one class name a line")


# Images that are enough to find the largest activations.
TYPICAL = 256


def add_8_bits(parser: argparse.ArgumentParser) -> None:
    """Adds the option of `in_8_bits`."""
    parser.add_argument(
        "--int8",
        metavar="IMAGES",
        help="compute in 8 bits, which is faster on CPUs and a little less accurate; IMAGES is a "
        f"folder of images like those to predict, of which up to {TYPICAL} are read",
    )


def in_8_bits(predictor: "Predictor", images: str | None) -> "Predictor":
    """Returns the predictor in 8 bits if a folder of images is given."""
    if images is None:
        return predictor
    use_compiler()
    return predictor.in_8_bits(typical_files(images, "--int8"))


def typical_files(folder: str, option: str) -> list[str]:
    """Returns up to `TYPICAL` images of a folder that an option names, evenly spread over it."""
    from flaxres.inference.predict import image_files

    if not expanded(folder).exists():
        raise InputError(
            f"{option} {folder!r} does not exist: give a folder of images like those to predict"
        )
    files = list(image_files([str(expanded(folder))]))
    return files[:: -(-len(files) // TYPICAL)]


def predictor_of(chosen: argparse.Namespace) -> "Predictor":
    """Returns the network that the options of `add_origin` choose."""
    silence()
    from flaxres.inference.predict import from_tag, from_weights, from_workdir

    if chosen.workdir:
        return from_workdir(chosen.workdir)
    if chosen.tag:
        return from_tag(chosen.tag)
    return from_weights(chosen.weights, chosen.model, chosen.size, chosen.classes)


# Images of a plot, and the columns of a table that is not for a terminal.
DRAWN, WHOLE = 32, 10_000
# From this many images on, a network in C++ saves more time than compiling it may take.
MANY = 1000


def predictions(
    predictor: "Predictor", paths: Sequence[str], top: int
) -> Iterator[tuple[str, "Best | None"]]:
    """Yields the classes of files and of the images in folders.

    An image in a folder that can't be read is reported, and yields None; a file that was named
    raises.

    Args:
      predictor: the network.
      paths: files and folders.
      top: the number of classes.
    """
    from flaxres.data._progress import progress_bar
    from flaxres.inference.predict import BATCH, image_files

    named, files = set(paths), list(image_files(paths))

    def left_out(file: str, error: InputError) -> None:
        if file in named:
            raise error
        say(f"flaxres: left out: {error}")

    if len(files) >= MANY:
        use_compiler()
    results = zip(files, predictor.stream(files, top, left_out), strict=True)
    if len(files) <= BATCH:
        yield from results
        return
    with progress_bar() as progress:
        yield from progress.track(results, len(files), description="images")


def predict(arguments: Sequence[str]) -> None:
    """Prints the likeliest classes of images."""
    parser = Parser(
        "flaxres predict",
        description="Classify images by a run, a file of weights, or a pretrained tag of timm.",
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files, and folders of them at any depth"
    )
    add_origin(parser)
    parser.add_argument("--top", type=int, default=5, help="how many classes (5)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object: image -> [[class, probability], ...]",
    )
    form.add_argument(
        "--csv", action="store_true", help="print lines of image,rank,class,probability"
    )
    add_8_bits(parser)
    parser.add_argument(
        "--plot", metavar="PNG", help=f"draw the images with their classes, up to {DRAWN}"
    )
    chosen = parser.parse_args(arguments)
    if chosen.top < 1:
        raise InputError(f"--top={chosen.top}: the rule is > 0")
    keep_memory()
    predictor = in_8_bits(predictor_of(chosen).for_photographs(), chosen.int8)
    paths = [str(expanded(path)) for path in chosen.images]
    every = list(predictions(predictor, paths, chosen.top))
    results = {file: best for file, best in every if best is not None}
    if chosen.plot and results:
        from flaxres.inference.predict import draw

        drawn = dict(itertools.islice(results.items(), DRAWN))
        draw(list(drawn), list(drawn.values()), predictor, chosen.plot)
    _print_results(results, chosen)
    if left_out := len(every) - sum(best is not None for _, best in every):
        raise InputError(f"{left_out} of {len(every)} images could not be read, see above")


def _print_results(results: "dict[str, Best]", chosen: argparse.Namespace) -> None:
    """Prints predictions as JSON, as CSV, or as a table."""
    rows = (
        (file, rank, name, probability)
        for file, best in results.items()
        for rank, (name, probability) in enumerate(best, 1)
    )
    if chosen.json:
        print(json.dumps(results))
        return
    if chosen.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(("image", "rank", "class", "probability"))
        writer.writerows((*row, f"{probability:.6f}") for *row, probability in rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("image", "class", "probability")
    for file, rank, name, probability in rows:
        table.add_row(
            "" if rank > 1 else file,
            name,
            f"{100 * probability:.2f}%",
            end_section=rank == len(results[file]),
        )
    # A terminal's width is the reader's; a file or a program gets whole names.
    width = None if sys.stdout.isatty() else WHOLE
    Console(markup=False, width=width).print(table)


def export(arguments: Sequence[str]) -> None:
    """Exports a network as a program that needs only jax."""
    parser = Parser(
        "flaxres export",
        description="Write a network as a program for any batch size and device. For a run, also "
        "measure its accuracy, as trained and as exported.",
    )
    add_origin(parser)
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument(
        "--logits",
        action="store_true",
        help="take normalised float32 and give logits, in place of uint8 and probabilities",
    )
    parser.add_argument(
        "--no-fold", action="store_true", help="keep batch norms apart from convolutions"
    )
    parser.add_argument("--int8", action="store_true", help="kernels in 8 bits")
    parser.add_argument("--onnx", action="store_true", help="write model.onnx too, by jax2onnx")
    parser.add_argument(
        "--onnx-int8",
        metavar="IMAGES",
        help="also write model.int8.onnx, in 8 bits by onnxruntime; IMAGES is a folder of images "
        f"like those to predict, of which up to {TYPICAL} are read",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = parser.parse_args(arguments)
    import jax

    from flaxres.inference import export as exporting
    from flaxres.inference.artifacts import Form

    onnx = chosen.onnx or chosen.onnx_int8 is not None
    form = Form(not chosen.logits, not chosen.no_fold, chosen.int8, onnx)
    out = expanded(chosen.out)
    typical = () if chosen.onnx_int8 is None else typical_files(chosen.onnx_int8, "--onnx-int8")
    exporting.require_ready(out, form, bool(typical))
    predictor = predictor_of(chosen)
    done = exporting.export(predictor, out, form, workdir=chosen.workdir, typical=typical)
    sentences = [exporting.accuracy_sentence(done.accuracy)] if done.accuracy else []
    names = ", ".join(sorted(path.name for path in done.folder.iterdir()))
    size = f"{done.program_bytes / 1e6:.1f} MB, {done.folded} batch norms folded"
    made_with = f"made with jax {jax.__version__}: an older jax may not load it"
    lines = [*sentences, f"wrote {done.folder} ({size}): {names}", made_with]
    facts = dataclasses.asdict(done) | {"folder": str(done.folder)}
    accuracy = facts.pop("accuracy")
    show(chosen.json, facts | accuracy, lines)


def convert(arguments: Sequence[str]) -> None:
    """Converts weights to safetensors in torchvision's and timm's naming."""
    from flaxres.weights.files import FORMS

    parser = Parser(
        "flaxres convert",
        description="Check weights against their model, and write safetensors that flaxres, "
        "torchvision and timm load.",
    )
    parser.add_argument(
        "source",
        metavar="IN",
        help=f"{FORMS}; or the workdir of a run",
    )
    parser.add_argument("target", metavar="OUT", help=".safetensors, or a folder with --hub")
    parser.add_argument(
        "--model",
        help="the network that a file's weights are of, e.g. resnet50; not needed for a file that "
        "flaxres wrote",
    )
    parser.add_argument(
        "--hub",
        action="store_true",
        help="write a folder in the hub's form, for load_pretrained and timm's local-dir:",
    )
    parser.add_argument(
        "--license", default="", help="of the weights, for the folder's model card: apache-2.0"
    )
    chosen = parser.parse_args(arguments)
    if chosen.license and not chosen.hub:
        raise InputError(
            f"--license {chosen.license} needs --hub: it is written into the model card of a folder"
        )
    silence()
    _convert(chosen)


def _convert(chosen: argparse.Namespace) -> None:
    """Reads a network and writes it again."""
    from flaxres.inference.predict import read_network, stated_preprocess
    from flaxres.inference.runs import read_run
    from flaxres.training.staging import local
    from flaxres.weights.hub_folder import save_pretrained
    from flaxres.weights.transfer import save_weights

    preprocess: Preprocess | None
    about: dict[str, str] = {}
    source = local(chosen.source)
    if os.path.isdir(source):  # noqa: PTH112 (false where it can't be read)
        (model, variables, preprocess, names), config = read_run(source)
        multi_label = config.data.multi_label
        about = _about(source) if chosen.hub else {}
    else:
        # Only what the file says; where it says nothing, the new one does not either.
        model, variables, card = read_network(chosen.source, chosen.model)
        preprocess, names = stated_preprocess(card), card.classes
        multi_label = card.multi_label
    if chosen.hub:
        if preprocess is None:
            raise InputError(
                f"{chosen.source!r} does not state its preprocessing, which --hub needs: convert "
                "the workdir of the run, or call flaxres.save_pretrained"
            )
        save_pretrained(
            chosen.target,
            model,
            variables,
            preprocess,
            names,
            license=chosen.license,
            multi_label=multi_label,
            **about,
        )
    else:
        save_weights(chosen.target, variables, model, preprocess, names, multi_label=multi_label)
    print(f"{model.num_classes} classes: wrote {chosen.target}")


def _about(workdir: os.PathLike[str]) -> dict[str, str]:
    """Returns the account of a run for `save_pretrained`; {} if the run is not finished."""
    from flaxres.inference.about import about_run

    try:
        return {"about": about_run(workdir)}
    except InputError as error:
        say(f"flaxres: the model card has no figures: {error}")
        return {}
