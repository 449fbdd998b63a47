"""`flaxres models` and `flaxres configs`."""

import dataclasses
import fnmatch
import json
from collections.abc import Sequence
from typing import Any

from flaxres.cli._words import Parser, show
from flaxres.errors import InputError, unknown


def models(arguments: Sequence[str]) -> None:
    """Lists the models with their numbers of parameters and multiply-accumulates."""
    from flaxres.models.registry import list_models

    parser = Parser(
        "flaxres models",
        description="List the models that match a shell pattern, with their costs for one image. "
        "With the name of one model, list its layers.",
    )
    parser.add_argument("pattern", nargs="?", default="*")
    parser.add_argument(
        "--size", type=int, help="pixels of a side (224; 32 for the CIFAR networks)"
    )
    parser.add_argument(
        "--depth", type=int, help="with one name: fold the layers below, e.g. 1 for layer1"
    )
    parser.add_argument(
        "--tags", action="store_true", help="list the pretrained weights that go by name instead"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = parser.parse_args(arguments)
    if chosen.tags:
        for option in ("size", "depth"):
            if (value := getattr(chosen, option)) is not None:
                raise InputError(f"--{option}={value} has no meaning with --tags: leave one out")
        _tags(chosen.pattern, chosen.json)
        return
    if not (names := list_models(chosen.pattern)):
        if set("*?[") & set(chosen.pattern):
            raise InputError(
                f"no model matches {chosen.pattern!r}: flaxres models lists all of them"
            )
        raise unknown("model", chosen.pattern, list_models())
    for option, least in (("size", 32), ("depth", 1)):
        if (value := getattr(chosen, option)) is not None and value < least:
            raise InputError(f"--{option}={value}: the rule is >= {least}")
    if names == [chosen.pattern]:
        _layers(chosen.pattern, chosen.size, chosen.depth, chosen.json)
        return
    if chosen.depth is not None:
        raise InputError(
            f"--depth={chosen.depth} needs the name of one model: {chosen.pattern!r} is a pattern"
        )
    _costs(names, chosen.size, chosen.json)


def _layers(name: str, size: int | None, depth: int | None, as_json: bool) -> None:
    """Lists the layers of a model, with its costs."""
    from flaxres.models.registry import create_model
    from flaxres.models.summary import layers, table, usual_size

    model = create_model(name)
    pixels = size or usual_size(model)
    rows = layers(model, pixels, depth)
    macs = sum(row.macs for row in rows)
    facts: dict[str, Any] = {
        "parameters": sum(row.parameters for row in rows),
        "gmacs": round(macs / 1e9, 3),
        "pixels": pixels,
        "layers": [row._asdict() for row in rows],
    }
    lines = [f"{name}, one image of {pixels}x{pixels} pixels", "", table(rows)]
    show(as_json, {name: facts}, lines)


def _costs(names: Sequence[str], size: int | None, as_json: bool) -> None:
    """Lists models with their costs for one image."""
    from flaxres.models.costs import cost

    width = max([20, *map(len, names)])
    if not as_json:
        print(f"{'name':<{width}}{'parameters':>13}{'GMACs':>9}{'pixels':>8}")
    facts = {}
    for name in names:
        parameters, macs, pixels = cost(name, size)
        gmacs = macs / 1e9
        facts[name] = {"parameters": parameters, "gmacs": round(gmacs, 3), "pixels": pixels}
        if not as_json:
            print(f"{name:<{width}}{parameters:>13,}{gmacs:>9.2f}{pixels:>8}", flush=True)
    if as_json:
        print(json.dumps(facts))


def _tags(pattern: str, as_json: bool) -> None:
    """Lists the pretrained weights whose tag or architecture matches a shell pattern."""
    from flaxres.weights.tags import list_pretrained, pretrained_info

    if not (names := list_pretrained(pattern)):
        raise InputError(
            f"no pretrained weights match {pattern!r}: flaxres models --tags lists all of them"
        )
    rows = {name: pretrained_info(name) for name in names}
    lines = [
        f"{'tag':<46}{'classes':>8}{'pixels':>8}{'top-1':>8}{'pixels':>8}{'top-1':>8}  license"
    ]
    for name, row in rows.items():
        tested = ((row.input_size, row.top1), (row.test_input_size, row.test_top1))
        figures = "".join(
            f"{size:>8}{'-' if top1 is None else f'{top1:.2f}':>8}" for size, top1 in tested
        )
        lines.append(f"{name:<46}{row.num_classes:>8}{figures}  {row.license or '-'}")
    lines += [
        "",
        "The second pair of columns is resolution='test' of flaxres.load_pretrained. Top-1 is on",
        "ImageNet; for the weights that come with the package (flaxres_DATASET), on their dataset.",
    ]
    show(as_json, {name: dataclasses.asdict(row) for name, row in rows.items()}, lines)


def configs(arguments: Sequence[str]) -> None:
    """Lists the shipped recipes, or shows one."""
    from flaxres.config import recipes

    parser = Parser(
        "flaxres configs",
        description="List the shipped recipes that match a shell pattern, or show one in full.",
    )
    parser.add_argument(
        "pattern", nargs="?", default="*", help="e.g. 'cifar10/*', or the name of a recipe"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = parser.parse_args(arguments)
    if not (names := [name for name in recipes.names() if fnmatch.fnmatch(name, chosen.pattern)]):
        raise unknown("recipe", chosen.pattern, recipes.names())
    facts = {name: recipes.describe(name) for name in names}
    if chosen.pattern in facts and not chosen.json:
        print(recipes.docstring(chosen.pattern))
        return
    lines = []
    for name, (summary, expected, cost) in facts.items():
        lines += [name, f"    {summary}", f"    Expected: {expected}"]
        if cost:
            lines.append(f"    Cost: {cost}")
    lines += ["", "flaxres train --config NAME trains one; flaxres configs NAME shows it in full."]
    keys = ("summary", "expected", "cost")
    named = {name: dict(zip(keys, fact, strict=True)) for name, fact in facts.items()}
    show(chosen.json, named, lines)
