"""`flaxres explain`."""

from collections.abc import Sequence

from flaxres.cli._predict import DRAWN, add_origin, predictor_of
from flaxres.cli._words import Parser
from flaxres.errors import InputError
from flaxres.paths import expanded

BOTH = "both"


def explain(arguments: Sequence[str]) -> None:
    """Draws the pixels that the class of a photograph depends on."""
    parser = Parser(
        "flaxres explain",
        description="Draw Grad-CAM and integrated gradients over photographs, with their five "
        "likeliest classes.",
    )
    parser.add_argument(
        "images", nargs="+", metavar="PHOTO", help=f"image files, and folders; up to {DRAWN}"
    )
    add_origin(parser)
    parser.add_argument(
        "--class", dest="name", help="the class to explain, name or number (the likeliest)"
    )
    parser.add_argument(
        "--method", choices=("grad-cam", "integrated-gradients", BOTH), default=BOTH
    )
    parser.add_argument("--layer", help="Grad-CAM's layer, e.g. stage3 (the last stage)")
    parser.add_argument("--steps", type=int, default=50, help="of integrated gradients (50)")
    parser.add_argument(
        "--out", metavar="PNG", default="explanation.png", help="the picture (explanation.png)"
    )
    chosen = parser.parse_args(arguments)
    if chosen.steps < 1:
        raise InputError(f"--steps={chosen.steps}: the rule is > 0")
    if not (folder := expanded(chosen.out).parent).is_dir():
        raise InputError(f"--out {chosen.out!r}: {str(folder)!r} is no folder: make it first")
    predictor = predictor_of(chosen).for_photographs()
    from flaxres.inference.explained import METHODS, draw, explanations
    from flaxres.inference.predict import image_files

    files = list(image_files([str(expanded(path)) for path in chosen.images]))
    if len(files) > DRAWN:
        raise InputError(f"{len(files)} photographs: the rule is at most {DRAWN} in one picture")
    methods = METHODS if chosen.method == BOTH else (chosen.method,)
    explained = []
    results = explanations(predictor, files, chosen.name, methods, chosen.layer, chosen.steps)
    for file, one in zip(files, results, strict=True):
        name, probability = one.chosen
        print(f"{file}: {name}, {100 * probability:.2f}%", flush=True)
        explained.append(one)
    draw(explained, files, chosen.out)
    print(f"wrote {chosen.out}")
