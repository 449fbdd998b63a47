"""Names and files of an export: the model card and the server."""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from flaxres import serving
from flaxres.data.preprocess import Preprocess
from flaxres.inference.predict import Predictor
from flaxres.inference.served import served_crop, takes_photographs
from flaxres.models.count import multiply_accumulates, parameters
from flaxres.serving.model import CLASSES, PREPROCESS, PROGRAM

WEIGHTS, README = "weights.safetensors", "README.md"
ONNX, ONNX_IN_8_BITS = "model.onnx", "model.int8.onnx"
SERVER, PACKAGE = "serve.py", "serving"

_SERVE = '''"""Serves the network beside this file: `python serve.py 8000`.

It needs jax, flatbuffers and Pillow, and waitress if it is installed. `--help` lists the options.
"""

import sys

from serving.main import main

if __name__ == "__main__":
    sys.exit(main())
'''


@dataclasses.dataclass(frozen=True)
class Form:
    """The form of an exported program.

    Attributes:
      pixels: maps uint8 images to probabilities; else normalised float32 to logits.
      fold: folds batch norms into the convolutions before them.
      int8: keeps kernels in 8 bits.
      onnx: also writes the program as ONNX.
    """

    pixels: bool = True
    fold: bool = True
    int8: bool = False
    onnx: bool = False


def model_card(
    predictor: Predictor,
    form: Form,
    folded: int,
    accuracy: str,
    size: int,
    platforms: Sequence[str],
) -> str:
    """Returns the text of README.md.

    Args:
      predictor: the network.
      form: the form of the program.
      folded: number of folded norms.
      accuracy: a sentence.
      size: of the program, bytes.
      platforms: of the program.
    """
    name = type(predictor.model).__name__
    rows = _facts(predictor, form) | {
        "accuracy": accuracy,
        "folded batch norms": f"{folded}",
        "devices": ", ".join(platforms),
        "made with": f"jax {jax.__version__}; an older jax may not load it",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    serve = onnx = ""
    if has_server(predictor, form):
        serve = f"""
`python {SERVER} 8000` serves it on this machine, with a page for browsers. The server also needs
Pillow, and waitress for many clients. `{PREPROCESS}` says how `{PACKAGE}/` crops photographs.

```sh
curl --data-binary @photo.jpg 127.0.0.1:8000
```
"""
    if form.onnx:
        onnx = f"""
`{ONNX}` is the same program in ONNX; `{ONNX_IN_8_BITS}`, if it is there, computes in 8 bits.
"""
    return f"""# {name} of {len(predictor.classes)} classes

| | |
|---|---|
{table}

`{PROGRAM}` ({size / 1e6:.1f} MB, weights included) needs jax and flatbuffers, and nothing else:

```python
import jax, numpy as np

model = jax.export.deserialize(open("{PROGRAM}", "rb").read())
outputs = model.call(images)  # {"uint8 RGB" if form.pixels else "float32"}
```
{serve}{onnx}
`{WEIGHTS}` has the weights before folding and rounding, in torchvision's and timm's naming.
"""


def _facts(predictor: Predictor, form: Form) -> dict[str, str]:
    """Returns the rows of the model card that follow from the network and the form."""
    model, preprocess = predictor.model, predictor.preprocess
    side, channels = preprocess.size, model.in_channels
    mean, std = list(preprocess.mean), list(preprocess.std)
    pixels = "uint8 RGB" if form.pixels else f"float32, (pixels / 255 - {mean}) / {std}"
    millions = multiply_accumulates(model, side) / 1e6
    resized = "both sides" if preprocess.squash else "short side"
    crop = f"{resized} resized to {preprocess.resize} ({preprocess.interpolation})"
    return {
        "network": f"{type(model).__name__}, {parameters(model):,} parameters",
        "multiply-accumulates": f"{millions:,.1f} million an image",
        "classes": f"{len(predictor.classes):,}, in `{CLASSES}`",
        "preprocessing": f"{crop}, central {side} x {side}",
        "input": f"(N, {side}, {side}, {channels}) {pixels}; any N",
        "output": f"(N, classes) float32 {'probabilities' if form.pixels else 'logits'}",
        "kernels": "8 bits, by output channel" if form.int8 else str(jnp.dtype(model.param_dtype)),
    }


def has_server(predictor: Predictor, form: Form) -> bool:
    """Returns True if the program takes photographs as pixels."""
    return form.pixels and takes_photographs(predictor)


def write_server(folder: pathlib.Path, preprocess: Preprocess) -> None:
    """Writes the server: serve.py, the package `flaxres.serving` that it starts, and its settings.

    Args:
      folder: the folder of the export.
      preprocess: of the network.
    """
    (folder / PREPROCESS).write_text(served_crop(preprocess).to_json(), encoding="utf-8")
    (folder / SERVER).write_text(_SERVE, encoding="utf-8")
    package = folder / PACKAGE
    package.mkdir(exist_ok=True)
    for path in pathlib.Path(serving.__file__).parent.iterdir():
        if path.suffix in (".py", ".html"):
            (package / path.name).write_bytes(path.read_bytes())
