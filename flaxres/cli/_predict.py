"""`flaxres predict`, `flaxres export` and `flaxres convert`."""

import argparse
import dataclasses
import json
import os
import pathlib
import typing
from collections.abc import Sequence

from flaxres.cli._options import Parser, show
from flaxres.cli._process import silence
from flaxres.errors import InputError
from flaxres.printing import say

if typing.TYPE_CHECKING:
    from flaxres.inference.predict import Predictor


def add_origin(parser: argparse.ArgumentParser) -> None:
    """Adds the options that choose a network with its weights."""
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--workdir", help="a run of train.py: its newest checkpoint")
    origin.add_argument("--weights", help="a file of weights; needs --model")
    origin.add_argument("--tag", help="a tag on the hub, e.g. resnet50.a1_in1k")
    parser.add_argument("--model", help="the network that --weights are of")
    parser.add_argument(
        "--size", type=int, help="with --weights: pixels of a side (224; 32 for the CIFAR networks)"
    )
    parser.add_argument("--classes", help="with --weights: a text file with one class name a line")


def predictor_of(chosen: argparse.Namespace) -> "Predictor":
    """Returns the network that the options of `add_origin` choose."""
    if chosen.weights and not chosen.model:
        raise InputError("--weights needs --model, e.g. --model resnet50")
    silence()
    from flaxres.inference.predict import from_tag, from_weights, from_workdir

    if chosen.workdir:
        return from_workdir(chosen.workdir)
    if chosen.tag:
        return from_tag(chosen.tag)
    return from_weights(chosen.weights, chosen.model, chosen.size, chosen.classes)


def predict(arguments: Sequence[str]) -> None:
    """Prints the likeliest classes of images."""
    parser = Parser(
        "flaxres predict",
        description="Classify images by a run, a file of weights, or a pretrained tag of timm.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="JPEG or PNG files")
    add_origin(parser)
    parser.add_argument("--top", type=int, default=5, help="how many classes (5)")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object: image -> [[class, probability], ...]",
    )
    parser.add_argument("--plot", metavar="PNG", help="draw the images with their classes")
    chosen = parser.parse_args(arguments)
    if chosen.top < 1:
        raise InputError(f"--top={chosen.top}: the rule is > 0")
    predictor = predictor_of(chosen)
    preprocess = predictor.preprocess.for_photographs()
    predictor = dataclasses.replace(predictor, preprocess=preprocess)
    results = predictor(chosen.images, chosen.top)
    if chosen.plot:
        from flaxres.inference.predict import draw

        draw(chosen.images, results, predictor, chosen.plot)
    if chosen.json:
        print(json.dumps(dict(zip(chosen.images, results, strict=True))))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("image", "class", "probability")
    for image, best in zip(chosen.images, results, strict=True):
        for i, (name, probability) in enumerate(best):
            table.add_row(
                "" if i else image,
                name,
                f"{100 * probability:.2f}%",
                end_section=i == len(best) - 1,
            )
    Console(markup=False).print(table)


def export(arguments: Sequence[str]) -> None:
    """Exports a network as a program that needs jax alone."""
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
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = parser.parse_args(arguments)
    import jax

    from flaxres.inference import export as exporting
    from flaxres.inference.artifacts import Form

    form = Form(not chosen.logits, not chosen.no_fold, chosen.int8, chosen.onnx)
    exporting.require_ready(pathlib.Path(chosen.out), form)
    predictor = predictor_of(chosen)
    measured: dict[str, float] = {}
    sentences: list[str] = []
    if chosen.workdir:
        try:
            measured = exporting.accuracies(chosen.workdir, predictor, form)
        except InputError as error:
            say(f"flaxres: the accuracy is not measured: {error}")
    if measured:
        sentences = [
            f"top-1 {100 * measured['top1_exported']:.2f}% of {measured['examples']:,} evaluation "
            f"examples, {100 * measured['top1_trained']:.2f}% as trained"
        ]
    done = exporting.export(predictor, pathlib.Path(chosen.out), form, *sentences)
    names = ", ".join(sorted(path.name for path in done.folder.iterdir()))
    size = f"{done.program_bytes / 1e6:.1f} MB, {done.folded} batch norms folded"
    made_with = f"made with jax {jax.__version__}: an older jax may not load it"
    lines = [*sentences, f"wrote {done.folder} ({size}): {names}", made_with]
    show(chosen.json, dataclasses.asdict(done) | {"folder": str(done.folder)} | measured, lines)


def convert(arguments: Sequence[str]) -> None:
    """Converts weights to safetensors in torchvision's and timm's naming."""
    parser = Parser(
        "flaxres convert",
        description="Check weights against their model, and write safetensors that flaxres, "
        "torchvision and timm load.",
    )
    parser.add_argument(
        "source",
        metavar="IN",
        help=".safetensors; .pth, .pt, .th (these need torch); or the workdir of a run",
    )
    parser.add_argument("target", metavar="OUT", help=".safetensors")
    parser.add_argument("--model", help="the network that a file's weights are of, e.g. resnet50")
    chosen = parser.parse_args(arguments)
    silence()
    from flaxres.inference.predict import from_weights, from_workdir
    from flaxres.weights.transfer import save_weights

    if os.path.isdir(chosen.source):  # noqa: PTH112 (false where it can't be read)
        predictor = from_workdir(chosen.source)
    elif chosen.model:
        predictor = from_weights(chosen.source, chosen.model, None, None)
    else:
        raise InputError("a file of weights needs --model, e.g. --model resnet50")
    save_weights(chosen.target, predictor.variables, predictor.model)
    print(f"{predictor.model.num_classes} classes: wrote {chosen.target}")
