"""Writes `flaxres/weights/pretrained.csv`: `python -m tools.pretrained_table [--results CSV]`.

The rows are the weights that the installed timm hosts for its residual and dense networks, and for
the image towers of CLIP. Names of torchvision are those of the weights
with the same URL. timm no longer gives the URLs of DenseNets; before its commit 7ad7ddb7, those of
`tv_in1k` were torchvision's. Accuracies come from timm's `results/results-imagenet.csv`; without
that file those of the present table stay. `--check` writes nothing and fails if the table would
change. Weights that are not on the Hugging Face hub have their address in place of the repository.
Needs the extra `parity` (PyTorch, timm).
"""

import argparse
import csv
import dataclasses
import importlib
import io
import pathlib
import sys
from typing import Any

import flaxres.weights.tags
from benchmarks.peers import torch_and_timm
from flaxres.models.registry import natural
from flaxres.weights.tags import Pretrained

TABLE = pathlib.Path(flaxres.weights.tags.__file__).with_name("pretrained.csv")
MODULES = [
    *("resnet", "resnetv2", "densenet", "res2net", "resnest", "sknet", "regnet", "convnext"),
    *("nfnet", "senet"),
]
# Of timm's networks of any blocks.
CLIPS = "resnet*_clip*"
FIGURES = ("top1", "top5", "test_top1", "test_top5")
SOURCE = "# Accuracies: "


def hosted(timm: Any) -> list[str]:
    """Returns the tags that timm hosts for the architectures of `MODULES`, in natural order."""
    names = {name for module in MODULES for name in timm.list_models(module=module)}
    names |= set(timm.list_models(CLIPS, module="byobnet"))
    tags = [tag for tag in timm.list_pretrained() if tag.partition(".")[0] in names]
    return sorted(tags, key=natural)


def torchvision_names() -> dict[str, str]:
    """Returns torchvision's names of weights by their URL, of DenseNets by timm's tag."""
    models = importlib.import_module("torchvision.models")
    return {
        f"{name}.tv_in1k" if name.startswith("densenet") else weights.url: (
            f"{type(weights).__name__}.{weights.name}"
        )
        for name in models.list_models(module=models)
        for weights in models.get_model_weights(name)
    }


def accuracies(path: pathlib.Path) -> dict[tuple[str, int, float], tuple[str, str]]:
    """Reads top-1 and top-5 accuracies from timm's results by tag, side and crop."""
    with path.open(newline="") as file:
        return {
            (row["model"], int(row["img_size"]), float(row["crop_pct"])): (row["top1"], row["top5"])
            for row in csv.DictReader(file)
        }


def row(timm: Any, tag: str, theirs: dict[str, str]) -> dict[str, Any]:
    """Returns the row of a tag without its accuracies."""
    architecture = tag.partition(".")[0]
    config = timm.get_pretrained_cfg(tag)
    default = timm.get_pretrained_cfg(architecture).tag
    test_size = config.test_input_size or config.input_size
    return {
        "tag": tag,
        "default": "yes" if tag == f"{architecture}.{default}" else "",
        "torchvision": theirs.get(config.url or tag, ""),
        "repository": config.hf_hub_id or config.url,
        "input_size": config.input_size[-1],
        "test_input_size": test_size[-1],
        "crop_pct": config.crop_pct,
        "test_crop_pct": config.test_crop_pct or config.crop_pct,
        "crop_mode": config.crop_mode,
        "interpolation": config.interpolation,
        "mean": " ".join(map(str, config.mean)),
        "std": " ".join(map(str, config.std)),
        "num_classes": config.num_classes,
        "first_conv": config.first_conv,
        "classifier": config.classifier,
        "license": config.license or "",
    }


def written(results: pathlib.Path | None, source: str) -> str:
    """Returns the content of the table.

    Args:
      results: timm's results, or None to keep the accuracies of the present table.
      source: version of `results`.
    """
    _, timm = torch_and_timm()
    theirs = torchvision_names()
    figures = accuracies(results) if results else {}
    old = {} if results else flaxres.weights.tags.table()
    if not results:
        lines = TABLE.read_text().splitlines()
        source = next(line for line in lines if line.startswith(SOURCE)).removeprefix(SOURCE)
    file = io.StringIO()
    file.write(f"# Written by `python -m tools.pretrained_table` from timm {timm.__version__}.\n")
    file.write(f"{SOURCE}{source}\n")
    fields = [field.name for field in dataclasses.fields(Pretrained)]
    names = [name for name in fields if name != "example"]  # weights of the hub have none
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    for tag in hosted(timm):
        values = row(timm, tag, theirs)
        if tag in old:
            values |= {name: getattr(old[tag], name) for name in FIGURES}
        for prefix in ("", "test_"):
            key = (tag, values[f"{prefix}input_size"], values[f"{prefix}crop_pct"])
            if key in figures:
                top1, top5 = map(float, figures[key])
                values |= {f"{prefix}top1": top1, f"{prefix}top5": top5}
        writer.writerow(values)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=pathlib.Path, help="timm's results-imagenet.csv")
    parser.add_argument("--source", default="timm's results-imagenet.csv", help="its version")
    parser.add_argument("--check", action="store_true", help="fail if the table would change")
    chosen = parser.parse_args()
    content = written(chosen.results, chosen.source)
    if not chosen.check:
        TABLE.write_text(content)
    elif content != TABLE.read_text():
        sys.exit(f"{TABLE.name} is out of date: run python -m tools.pretrained_table")


if __name__ == "__main__":
    main()
