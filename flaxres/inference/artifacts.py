"""Names and texts of an export: the model card and the server."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from flaxres.data.preprocess import Preprocess
from flaxres.inference.predict import Predictor
from flaxres.models.count import multiply_accumulates, parameters

PROGRAM, WEIGHTS, ONNX = "model.jax_export", "weights.safetensors", "model.onnx"
README, CLASSES, SERVER = "README.md", "classes.json", "serve.py"


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
    if form.pixels:
        serve = (
            f"\n`python {SERVER} 8000` serves it on this machine; "
            "`curl --data-binary @photo.jpg 127.0.0.1:8000` asks it.\n"
        )
    if form.onnx:
        onnx = f"\n`{ONNX}` is the same program in ONNX.\n"
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
    crop = f"short side resized to {preprocess.resize} ({preprocess.interpolation})"
    return {
        "network": f"{type(model).__name__}, {parameters(model):,} parameters",
        "multiply-accumulates": f"{millions:,.1f} million an image",
        "classes": f"{len(predictor.classes):,}, in `{CLASSES}`",
        "preprocessing": f"{crop}, central {side} x {side}",
        "input": f"(N, {side}, {side}, {channels}) {pixels}; any N",
        "output": f"(N, classes) float32 {'probabilities' if form.pixels else 'logits'}",
        "kernels": "8 bits, by output channel" if form.int8 else str(jnp.dtype(model.param_dtype)),
    }


def server_script(preprocess: Preprocess) -> str:
    """Returns the text of serve.py, a server in Python's own http.server."""
    return f'''"""Serves the model beside this file: `python serve.py 8000`.

`curl --data-binary @photo.jpg 127.0.0.1:8000` asks it. It needs jax and flatbuffers, and Pillow for
photographs, which it resizes as the network's evaluation does. Raw RGB pixels,
{preprocess.size} x {preprocess.size} x 3 bytes an image, need no Pillow.
"""

import http.server, io, json, pathlib, sys
import jax, numpy as np

HERE, SIZE, SHORT = pathlib.Path(__file__).parent, {preprocess.size}, {preprocess.resize}
model = jax.jit(jax.export.deserialize((HERE / "{PROGRAM}").read_bytes()).call)
names = json.loads((HERE / "{CLASSES}").read_text())

def pixels(body):
    if body and len(body) % (SIZE * SIZE * 3) == 0:
        return np.frombuffer(body, np.uint8).reshape(-1, SIZE, SIZE, 3)
    from PIL import Image
    image = Image.open(io.BytesIO(body)).convert("RGB")
    width, height = (int(SHORT * side / min(image.size)) for side in image.size)
    left, top = round((width - SIZE) / 2), round((height - SIZE) / 2)
    image = image.resize((width, height), Image.Resampling.{preprocess.interpolation.upper()})
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))[None]

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        try:
            images = pixels(body)
        except Exception as error:  # of many types, depending on the bytes
            size = f"{{SIZE}} x {{SIZE}} x 3 an image"
            message = f"{{len(body)}} bytes are neither a JPEG or PNG nor {{size}}"
            return self.send_error(400, message, str(error))
        rows = np.asarray(model(images))
        best = [{{names[i]: float(row[i]) for i in np.argsort(-row)[:5]}} for row in rows]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(best).encode() + b"\\n")

http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
'''
