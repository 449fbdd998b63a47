"""`flaxres lab`: experiments on skip connections."""

import argparse
import json
import pathlib
from collections.abc import Sequence

from flaxres.cli._process import keep_compiled, keep_memory, silence, use_compiler
from flaxres.cli._words import Parser
from flaxres.errors import unknown
from flaxres.printing import say

# The experiments of `flaxres.lab.EXPERIMENTS`, without importing it.
LAB = {
    "block": "the article's block: its identity at zero weights, and its gradient",
    "gradients": "the gradient at each of 10 to 1,000 layers",
    "degradation": "errors by epoch of plain and residual networks of 20 to 56 layers",
    "width": "width against depth at equal cost: where skip connections stop helping",
    "norm": "what batch norm does in place of skip connections, 20 to 110 layers",
    "lesion": "blocks taken out of trained networks; 250 of 300 bypassed",
    "paths": "the change by each block, and the share that passes it",
    "features": "feature maps of a photograph; a linear probe of each stage",
    "landscape": "the loss around a plain and a residual network",
    "all": "all of them, and a summary in Markdown (6 to 15 minutes a seed on two cores)",
}


def lab(arguments: Sequence[str]) -> None:
    """Runs experiments on skip connections."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if chosen.experiment not in LAB:
        raise unknown("experiment", chosen.experiment, LAB)
    keep_memory()
    silence()
    keep_compiled()
    use_compiler()
    from flaxres.lab import EXPERIMENTS
    from flaxres.lab.report import Settings, conduct, summary

    given = vars(chosen)
    options = {name: given[name] for name in given if name not in ("experiment", "json", "out")}
    settings = Settings(pathlib.Path(chosen.out), **options)
    names = tuple(EXPERIMENTS) if chosen.experiment == "all" else (chosen.experiment,)
    facts = [conduct(name, EXPERIMENTS[name], settings) for name in names]
    if chosen.experiment == "all":
        (settings.out / "summary.md").write_text(summary(facts), encoding="utf-8")
        say(f"wrote {settings.out / 'summary.md'}")
    if chosen.json:
        keys = ("seconds", "claims")
        print(json.dumps({fact["experiment"]: {key: fact[key] for key in keys} for fact in facts}))


def _parser() -> Parser:
    parser = Parser(
        "flaxres lab",
        description="Why skip connections work: run experiments, and write an image, a table and "
        "the numbers of each.",
        epilog="\n".join(f"{name:<13}{text}" for name, text in LAB.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiment", metavar="EXPERIMENT", help="one of those below, or all")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder of images, tables and trained networks"
    )
    parser.add_argument("--seed", type=int, default=0, help="the first seed (0)")
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="repeat with N seeds: bands, deviations (1)",
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of epochs and steps: 0.5 for a first look (1)"
    )
    parser.add_argument(
        "--data", default="digits", help="the training data: digits, or cifar10 (digits)"
    )
    parser.add_argument("--source", help="CIFAR-10's archive; it is downloaded otherwise")
    parser.add_argument("--data-dir", help="folder of prepared datasets (TFDS's own)")
    parser.add_argument("--image", help="features: a photograph of yours")
    parser.add_argument("--weights", help="features: a file of weights to look into; needs --model")
    parser.add_argument("--model", help="features: the network of --weights")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object: experiment -> claims"
    )
    return parser
