"""Writes the folders of `results/`, the weights that come with the package, and docs/results.md.

    python -m tools.results write fashion_mnist_resnet9 --runs runs/a runs/b --torch torch.json \
        --command "python train.py --config fashion_mnist/resnet9 --data.source DIR" \
        --machine "two cores of ..." --published "..."
    python -m tools.results weights fashion_mnist_resnet9 --run runs/a --tag NAME \
        --license mit --about "..."
    python -m tools.results picture digits_resnet20 fashion_mnist_resnet9 --out curves.png
    python -m tools.results page

A result has the config, log, summary and curves of its first run, `result.json` with the figures
of all runs, and `SHA256SUMS`. `python -m tools.check_result FOLDER` checks it. Paths of the machine
are left out. `weights` writes the network of a run in float16 into the package, with the number of
images of the evaluation split that it classifies correctly. `picture` draws the curves of several
results and of PyTorch's runs into one picture. `page` writes the table of all results.
"""

import argparse
import collections
import io
import json
import pathlib
import shutil
import statistics
from typing import Any

import jax
import numpy as np
from PIL import Image

import flaxres
from benchmarks import command
from flaxres import figures
from flaxres.config.files import from_json
from flaxres.data.digests import file_digest
from flaxres.data.source import Source
from flaxres.training.checkpoints import Checkpoints
from flaxres.training.metrics import read_metrics
from flaxres.training.run import open_data
from flaxres.training.workdir import CHECKPOINTS, CONFIG, CURVES, METRICS, SUMMARY
from flaxres.weights.hub_folder import WEIGHTS
from flaxres.weights.tags import TRAINED

ROOT = pathlib.Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "results", ROOT / "docs" / "results.md"
RESULT, PROVENANCE, SUMS = "result.json", "provenance.json", "SHA256SUMS"
LARGEST_LOG, LONGEST_CURVE = 100_000, 300
BATCH = 500
# Losses are drawn as the means of this many epochs.
AVERAGED_EPOCHS = 2
# What a provenance says about the machine's folders.
PLACES = ("command", "config")
BEGIN, END = "<!-- written by `python -m tools.results page` -->", "<!-- end -->"


def write(chosen: argparse.Namespace) -> None:
    """Writes the folder of a result from finished runs that differ in their seed."""
    folder = RESULTS / chosen.name
    folder.mkdir(parents=True, exist_ok=True)
    first = chosen.runs[0]
    settings = read_json(first / CONFIG)
    settings["data"] |= {"source": None, "data_dir": None}
    _write_json(folder / CONFIG, settings)
    _write_json(folder / SUMMARY, read_json(first / SUMMARY))
    rows = [json.dumps(row) for row in thinned(read_metrics(first))]
    (folder / METRICS).write_text("\n".join(rows) + "\n")
    shutil.copyfile(first / CURVES, folder / CURVES)
    with Checkpoints(first / CHECKPOINTS) as checkpoints:
        provenance = checkpoints.provenance()
    _write_json(folder / PROVENANCE, {k: v for k, v in provenance.items() if k not in PLACES})
    summaries = [read_json(run / SUMMARY) for run in chosen.runs]
    peer = read_json(chosen.torch) if chosen.torch else None
    if peer:
        curve = peer["curve"]
        peer["curve"] = curve[:: -(-len(curve) // LONGEST_CURVE)]
    old = read_json(folder / RESULT) if (folder / RESULT).exists() else {}
    result = {
        "command": chosen.command,
        "machine": chosen.machine,
        "published": chosen.published,
        "seeds": [read_json(run / CONFIG)["train"]["seed"] for run in chosen.runs],
        **command.spread([summary["top1"] for summary in summaries]),
        "minutes": [round(summary["seconds"] / 60, 1) for summary in summaries],
        "torch": peer,
        "weights": old.get("weights"),
    }
    _write_json(folder / RESULT, result)
    seal(folder)


def thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leaves out rows of training until a log has at most 100 kB; rows of evaluation stay."""
    every = 1
    while True:
        kept = [row for i, row in enumerate(rows) if not i % every or "eval/top1" in row]
        if sum(len(json.dumps(row)) + 1 for row in kept) <= LARGEST_LOG:
            return kept
        every += 1


def seal(folder: pathlib.Path) -> None:
    """Writes the digests of a folder's files into SHA256SUMS, in the form of `sha256sum`."""
    files = sorted(path for path in folder.iterdir() if path.name != SUMS)
    lines = [f"{file_digest(path)}  {path.name}" for path in files]
    (folder / SUMS).write_text("\n".join(lines) + "\n")


def weights(chosen: argparse.Namespace) -> None:
    """Writes the network of a run into the package, and its accuracy into the result."""
    run = flaxres.load_run(chosen.run)
    half = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), run.variables)
    flaxres.save_pretrained(
        TRAINED / chosen.tag,
        run.model,
        half,
        run.preprocess,
        run.classes,
        about=chosen.about,
        license=chosen.license,
    )
    config = TRAINED / chosen.tag / CONFIG
    content = read_json(config) | {"license": chosen.license, "top1": None}
    _write_json(config, content)
    settings = from_json(chosen.run / CONFIG)
    (source,) = open_data(settings.data, [settings.data.eval_split])
    right = correct(chosen.tag, source)
    _write_json(config, content | {"top1": 100 * right / len(source)})
    if chosen.example is not None:
        picture = Image.open(io.BytesIO(source.read(chosen.example)[0]))
        picture.save(TRAINED / chosen.tag / "example.png")
    folder = RESULTS / chosen.name
    result = read_json(folder / RESULT)
    file = TRAINED / chosen.tag / WEIGHTS
    result["weights"] = {
        "tag": chosen.tag,
        "sha256": file_digest(file),
        "correct": right,
        "of": len(source),
    }
    _write_json(folder / RESULT, result)
    seal(folder)


def correct(tag: str, source: Source) -> int:
    """Returns how many images of a split the weights of a tag classify correctly."""
    model, variables, preprocess = flaxres.load_pretrained(tag)
    classify = jax.jit(lambda images: model.apply(variables, images).argmax(-1))
    right = 0
    for first in range(0, len(source), BATCH):
        records = [source.read(i) for i in range(first, min(first + BATCH, len(source)))]
        images = preprocess([image for image, _ in records])
        right += int((classify(images) == np.array([label for _, label in records])).sum())
    return right


def picture(chosen: argparse.Namespace) -> None:
    """Draws the losses and evaluation errors of results, with those of PyTorch dashed."""
    plt = figures.pyplot()
    figure, (loss, error) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for i, name in enumerate(chosen.names):
        folder, colour = RESULTS / name, f"C{i}"
        rows, peer = read_metrics(folder), read_json(folder / RESULT)["torch"]
        losses = [(row["epoch"], row["train/loss"]) for row in rows if "train/loss" in row]
        errors = [(row["epoch"], 1 - row["eval/top1"]) for row in rows if "eval/top1" in row]
        loss.plot(*averaged(losses), color=colour, label=name)
        epochs, values = zip(*errors, strict=True)
        error.plot(epochs, values, color=colour, label=f"{name}: {values[-1]:.2%}")
        if not peer:
            continue
        epochs_per_step = rows[-1]["epoch"] / rows[-1]["step"]
        curve = [(step * epochs_per_step, value) for step, value in peer["curve"]]
        loss.plot(*averaged(curve), "--", color=colour, label=f"{name}, PyTorch")
        last, label = 1 - peer["mean"], f"{name}, PyTorch, at the end"
        error.axhline(last, color=colour, linestyle="--", label=f"{label}: {last:.2%}")
    loss.set(title="Training loss, augmented", ylabel="cross-entropy, nats")
    error.set(title="Top-1 error on the evaluation images", ylim=(0, None))
    error.yaxis.set_major_formatter("{x:.0%}")
    for axes in (loss, error):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figures.save(figure, str(chosen.out), "--out")


def averaged(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Returns the mean epoch and the mean value of each `AVERAGED_EPOCHS`."""
    windows = collections.defaultdict[int, list[tuple[float, float]]](list)
    for epoch, value in points:
        windows[int(epoch // AVERAGED_EPOCHS)].append((epoch, value))
    means = [map(statistics.fmean, zip(*windows[i], strict=True)) for i in sorted(windows)]
    epochs, values = zip(*means, strict=True)
    return list(epochs), list(values)


def page(chosen: argparse.Namespace) -> None:
    """Writes the table of docs/results.md, or with `--check` fails where it would change."""
    text = PAGE.read_text()
    new = text[: text.index(BEGIN) + len(BEGIN)] + "\n\n" + table() + "\n" + text[text.index(END) :]
    if chosen.check and new != text:
        raise SystemExit(f"{PAGE.name} is not current: run python -m tools.results page")
    PAGE.write_text(new)


def table() -> str:
    """Returns the table of all results in Markdown."""
    lines = [
        "| result | top-1 | seeds | PyTorch, same files | seeds | published | minutes a run |",
        "|---|---|---|---|---|---|---|",
    ]
    for folder in sorted(path.parent for path in RESULTS.glob(f"*/{RESULT}")):
        result = read_json(folder / RESULT)
        peer = result["torch"]
        theirs = (_percent(peer), str(len(peer["top1"]))) if peer else ("not run", "")
        minutes = f"{statistics.median(result['minutes']):.1f}"
        row = [folder.name, _percent(result), str(len(result["seeds"])), *theirs]
        lines.append("| " + " | ".join([*row, result["published"] or "", minutes]) + " |")
    return "\n".join(lines) + "\n"


def _percent(figures: dict[str, Any]) -> str:
    deviation = figures["deviation"]
    spread = "" if deviation is None else f" ± {100 * deviation:.2f}"
    return f"{100 * figures['mean']:.2f}%{spread}"


def read_json(path: pathlib.Path) -> Any:
    """Returns the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: pathlib.Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("write", help="write the folder of a result")
    one.add_argument("name")
    one.add_argument("--runs", type=pathlib.Path, nargs="+", required=True)
    one.add_argument("--torch", type=pathlib.Path, help="file of benchmarks.torch_recipe --out")
    one.add_argument("--command", required=True, help="the command that repeats the first run")
    one.add_argument("--machine", required=True)
    one.add_argument("--published", default="", help="a published figure with its source")
    one.set_defaults(function=write)
    two = commands.add_parser("weights", help="write weights into the package")
    two.add_argument("name", help="of the result")
    two.add_argument("--run", type=pathlib.Path, required=True)
    two.add_argument("--tag", required=True)
    two.add_argument("--license", default="")
    two.add_argument("--example", type=int, help="write this image of the evaluation too")
    two.add_argument("--about", required=True, help="paragraphs for the model card")
    two.set_defaults(function=weights)
    four = commands.add_parser("picture", help="draw the curves of several results")
    four.add_argument("names", nargs="+", help="of the results")
    four.add_argument("--out", type=pathlib.Path, required=True)
    four.set_defaults(function=picture)
    three = commands.add_parser("page", help="write the table of docs/results.md")
    three.add_argument("--check", action="store_true", help="fail where it would change")
    three.set_defaults(function=page)
    chosen = parser.parse_args()
    chosen.function(chosen)


if __name__ == "__main__":
    main()
