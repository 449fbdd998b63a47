"""`flaxres lab`: experiments on skip connections."""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from flaxres.cli._options import Parser
from flaxres.cli._process import keep_compiled, keep_memory, silence, use_compiler
from flaxres.errors import InputError, unknown

# What `flaxres.lab.EXPERIMENTS` has, told without importing it.
LAB = {
    "block": "the article's block: its fallback to the identity, and its gradient",
    "gradients": "what arrives of the gradient at each of 10 to 1,000 layers",
    "degradation": "errors by epoch of plain and residual networks of 20 to 56 layers",
    "lesion": "blocks taken out of trained networks; 250 of 300 bypassed",
    "paths": "what each block changes, and what passes it",
    "features": "feature maps of a photograph; a linear probe of each stage",
    "landscape": "the loss around a plain and a residual network",
    "all": "all of them, and a summary in Markdown (6 to 15 minutes on two cores)",
}


def lab(arguments: Sequence[str]) -> None:
    """Experiments on why skip connections work, with pictures, tables and numbers."""
    parser = Parser(
        "flaxres lab",
        description="Why skip connections work: run experiments, and write a picture, a table and the numbers of each.",
        epilog="\n".join(f"{name:<13}{text}" for name, text in LAB.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiment", metavar="EXPERIMENT", help="one of those below, or all")
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="where pictures, tables and the networks that are trained go",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of epochs and steps: 0.5 for a first look (1)"
    )
    parser.add_argument(
        "--data", default="digits", help="what networks are trained on: digits, or cifar10 (digits)"
    )
    parser.add_argument("--source", help="where CIFAR-10's archive is; it is downloaded otherwise")
    parser.add_argument("--data-dir", help="where prepared datasets are (TFDS's own folder)")
    parser.add_argument("--image", help="features: a photograph of yours")
    parser.add_argument("--weights", help="features: a file of weights to look into; needs --model")
    parser.add_argument("--model", help="features: the network that --weights are of")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object: experiment -> claims"
    )
    chosen = parser.parse_args(arguments)
    if chosen.experiment not in LAB:
        raise unknown("experiment", chosen.experiment, LAB)
    if chosen.seed < 0:
        raise InputError(f"--seed={chosen.seed}: the rule is >= 0")
    keep_memory()
    silence()
    keep_compiled()
    use_compiler()
    from flaxres.lab import EXPERIMENTS
    from flaxres.lab.report import Settings, conduct, summary

    given = {
        name: value
        for name, value in vars(chosen).items()
        if name not in ("experiment", "json", "out")
    }
    settings = Settings(pathlib.Path(chosen.out), **given)
    picked = tuple(EXPERIMENTS) if chosen.experiment == "all" else (chosen.experiment,)
    facts = [conduct(name, EXPERIMENTS[name], settings) for name in picked]
    if chosen.experiment == "all":
        (settings.out / "summary.md").write_text(summary(facts))
        print(f"wrote {settings.out / 'summary.md'}", file=sys.stderr)
    if chosen.json:
        print(
            json.dumps(
                {
                    fact["experiment"]: {"seconds": fact["seconds"], "claims": fact["claims"]}
                    for fact in facts
                }
            )
        )
