"""`flaxres export`: a network that leaves the trainer: a program that needs jax alone, its weights, its numbers and a script that serves it."""

import dataclasses
import importlib.util
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from flaxres.data.augment import normalise
from flaxres.data.preprocess import Preprocess
from flaxres.errors import InputError, writing_to
from flaxres.inference.predict import Predictor
from flaxres.models.blocks import unstack_blocks
from flaxres.models.count import multiply_accumulates, parameters
from flaxres.models.layers import BatchNorm, Conv
from flaxres.models.network import Network
from flaxres.ops.kept import jax_operations_only
from flaxres.weights.names import leaves, nested
from flaxres.weights.transfer import save_weights

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM, WEIGHTS, CARD, CLASSES, SERVER, ONNX = (
    "model.jax_export",
    "weights.safetensors",
    "README.md",
    "classes.json",
    "serve.py",
    "model.onnx",
)
LEVELS = 127
# jax2onnx pins an older Orbax than training needs; what converts networks is in these.
GET_ONNX = "pip install onnx onnxruntime && pip install --no-deps jax2onnx onnx-ir jaxtyping wadler-lindig equinox"

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Form:
    """What is exported.

    Attributes:
      pixels: take uint8 pictures and give probabilities; else take normalised float32 and give logits.
      fold: make batch norms part of the convolutions before them.
      int8: keep kernels in 8 bits.
      onnx: write `model.onnx` too.
    """

    pixels: bool = True
    fold: bool = True
    int8: bool = False
    onnx: bool = False


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written, and the sizes in bytes; `folded` batch norms are now part of a convolution."""

    folder: pathlib.Path
    program_bytes: int
    weights_bytes: int
    folded: int


def export(
    predictor: Predictor,
    folder: pathlib.Path,
    form: Form = Form(),
    accuracy: str = "not measured here",
) -> Exported:
    """Writes the program for any batch size and for CPUs, CUDA and TPUs, the weights, class names, a card with numbers and a server into `folder`.

    `accuracy` is a sentence for the card. Raises InputError where `folder` can't be written, or for ONNX where jax2onnx is not installed.
    """
    require_ready(folder, form)
    predictor = one_by_one(predictor)
    variables, folded = prepared(predictor, form)
    (batch,) = jax.export.symbolic_shape("batch")
    side, channels = predictor.preprocess.size, predictor.model.in_channels
    shape = jax.ShapeDtypeStruct(
        (batch, side, side, channels), jnp.uint8 if form.pixels else jnp.float32
    )
    content = jax.export.export(jax.jit(program(predictor, variables, form)), platforms=PLATFORMS)(
        shape
    ).serialize()
    with writing_to(folder):
        (folder / PROGRAM).write_bytes(content)
        (folder / CLASSES).write_text(
            json.dumps(predictor.classes, ensure_ascii=False, indent=0) + "\n"
        )
        (folder / CARD).write_text(card(predictor, form, folded, accuracy, len(content)))
        if form.pixels:
            (folder / SERVER).write_text(server(predictor.preprocess))
        if form.onnx:
            write_onnx(predictor, variables, form, folder / ONNX)
    save_weights(folder / WEIGHTS, predictor.variables, predictor.model)
    return Exported(folder, len(content), (folder / WEIGHTS).stat().st_size, folded)


def require_ready(folder: pathlib.Path, form: Form) -> None:
    """Refuses what could not be exported before anything is computed."""
    if form.onnx and importlib.util.find_spec("jax2onnx") is None:
        raise InputError(
            f"--onnx needs jax2onnx, best in an environment that only exports: {GET_ONNX}"
        )
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)


def one_by_one(predictor: Predictor) -> Predictor:
    """The same, with scanned blocks each by itself."""
    if not predictor.model.scan_blocks:
        return predictor
    model = predictor.model.clone(scan_blocks=False, parent=None)
    return dataclasses.replace(
        predictor, model=model, variables=unstack_blocks(predictor.variables)
    )


def prepared(predictor: Predictor, form: Form) -> tuple[Any, int]:
    """The variables that are exported, and how many norms were folded."""
    variables, count = (
        folded(predictor.model, predictor.variables) if form.fold else (predictor.variables, 0)
    )
    return (in_8_bits(variables) if form.int8 else variables), count


def folded(model: Network, variables: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """The variables of a network that answers the same, with each batch norm that follows a convolution made part of its kernel, and their number.

    A norm at rest is a product and a sum by channel (Ioffe & Szegedy 2015, section 3.1, algorithm 2): the product goes into the kernel, the sum stays
    as the norm's bias, and what is left of the norm is the identity, which XLA leaves out of a program whose weights are constants. Norms before
    convolutions (pre-activation networks, DenseNets), behind a pooling (ResNet9) and of standardised kernels stay. `scan_blocks` must be False.
    """
    flat = {kind: dict(leaves(tree)) for kind, tree in variables.items()}
    pairs = convolutions_before_norms(model, variables)
    for convolution, norm, epsilon in pairs:
        params, statistics = flat["params"], flat["batch_stats"]
        mean, var = (np.asarray(statistics[(*norm, name)], np.float64) for name in ("mean", "var"))
        scale, bias = (np.asarray(params[(*norm, name)], np.float64) for name in ("scale", "bias"))
        factor = scale / np.sqrt(var + epsilon)
        for path, value in (
            (
                (*convolution, "kernel"),
                np.asarray(params[(*convolution, "kernel")], np.float64) * factor,
            ),
            ((*norm, "scale"), np.ones_like(scale)),
            ((*norm, "bias"), bias - mean * factor),
        ):
            params[path] = value.astype(params[path].dtype)
        statistics[(*norm, "mean")] = np.zeros_like(statistics[(*norm, "mean")])
        statistics[(*norm, "var")] = np.full_like(statistics[(*norm, "var")], 1 - epsilon)
    return {kind: nested(tree) for kind, tree in flat.items()}, len(pairs)


def convolutions_before_norms(
    model: Network, variables: Mapping[str, Any]
) -> list[tuple[Path, Path, float]]:
    """Paths of each convolution whose very output a batch norm takes, and of that norm, with its epsilon."""
    outputs: dict[int, tuple[Path, Any]] = {}
    pairs = []

    def watch(call: Callable[..., Any], arguments: Any, options: Any, context: Any) -> Any:
        module, whole = context.module, context.method_name == "__call__"
        if isinstance(module, BatchNorm) and whole and id(arguments[0]) in outputs:
            pairs.append((outputs[id(arguments[0])][0], module.path, module.epsilon))
        result = call(*arguments, **options)
        if (
            isinstance(module, Conv)
            and whole
            and module.standardise is None
            and not module.use_bias
        ):
            outputs[id(result)] = (
                module.path,
                result,
            )  # kept alive, so that no other array gets its id
        return result

    images = jax.ShapeDtypeStruct((1, 64, 64, model.in_channels), jnp.float32)
    with nn.intercept_methods(watch):
        jax.eval_shape(model.apply, variables, images)
    return pairs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantised:
    """A kernel as whole numbers of 8 bits times a step for each output channel."""

    whole: np.ndarray
    step: np.ndarray


def in_8_bits(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables with every kernel in 8 bits, symmetric and by output channel (Jacob et al. 2018, section 2.1, with a zero point of 0)."""

    def rounded(path: Any, leaf: Any) -> Any:
        if path[-1].key != "kernel":
            return leaf
        kernel = np.asarray(leaf, np.float32)
        step = np.maximum(abs(kernel).max(tuple(range(kernel.ndim - 1))), 1e-12) / LEVELS
        return Quantised(np.rint(kernel / step).astype(np.int8), step.astype(np.float32))

    return jax.tree_util.tree_map_with_path(rounded, dict(variables))


def in_floats(variables: Any) -> Any:
    """The variables with 8-bit kernels as float32, (..., out)."""
    quantised = lambda leaf: isinstance(leaf, Quantised)  # noqa: E731
    return jax.tree.map(
        lambda leaf: (
            jnp.asarray(leaf.whole).astype(jnp.float32) * leaf.step if quantised(leaf) else leaf
        ),
        variables,
        is_leaf=quantised,
    )


def program(predictor: Predictor, variables: Any, form: Form) -> Callable[[jax.Array], jax.Array]:
    """With `form.pixels` (N, S, S, 3) uint8 -> probabilities (N, classes); else normalised float32 -> logits."""
    preprocess = predictor.preprocess

    def answer(images: jax.Array) -> jax.Array:
        if form.pixels:
            images = normalise(images, preprocess.mean, preprocess.std, jnp.float32)
        logits: Any = predictor.model.apply(in_floats(variables), images)
        return jax.nn.softmax(logits) if form.pixels else logits

    return answer


def write_onnx(predictor: Predictor, variables: Any, form: Form, path: pathlib.Path) -> None:
    """ONNX has no use for our ways with one compiler: the network is traced with JAX's own operations."""
    jax2onnx: Any = importlib.import_module("jax2onnx")
    side, channels = predictor.preprocess.size, predictor.model.in_channels
    images = jax.ShapeDtypeStruct(
        ("batch", side, side, channels), jnp.uint8 if form.pixels else jnp.float32
    )
    with jax_operations_only():
        jax2onnx.to_onnx(
            program(predictor, variables, form), [images], return_mode="file", output_path=str(path)
        )


def accuracies(workdir: str, predictor: Predictor, form: Form) -> dict[str, float]:
    """Top-1 on a run's evaluation split, every example once and as it is, as trained and as exported."""
    from flaxres.config.files import from_json
    from flaxres.training.evaluation import Evaluator
    from flaxres.training.run import prepare_run
    from flaxres.training.state import State

    config = from_json(pathlib.Path(workdir) / "config.json")
    # The program has no mirror images, no moved ones and no scanned blocks.
    data, model = (
        dataclasses.replace(config.data, eval_flip=False, eval_shift=0),
        dataclasses.replace(config.model, scan_blocks=False),
    )
    evaluator, predictor = (
        Evaluator(prepare_run(dataclasses.replace(config, data=data, model=model))),
        one_by_one(predictor),
    )
    reports = []
    for variables in (predictor.variables, in_floats(prepared(predictor, form)[0])):
        reports.append(
            evaluator(
                State(
                    jnp.zeros((), jnp.int32),
                    variables["params"],
                    variables.get("batch_stats", {}),
                    (),
                )
            )
        )
    return {
        "top1_trained": reports[0].top1,
        "top1_exported": reports[1].top1,
        "examples": reports[1].examples,
    }


def server(preprocess: Preprocess) -> str:
    """The text of `serve.py`."""
    return f'''"""Serves the model beside this file: `python serve.py 8000`, then `curl --data-binary @photo.jpg 127.0.0.1:8000`.

Needs jax and flatbuffers; and Pillow for photographs, which are scaled as the network's evaluation does.
Raw pixels, {preprocess.size} x {preprocess.size} x 3 bytes a picture, RGB, are taken as they are.
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
    picture = Image.open(io.BytesIO(body)).convert("RGB")
    width, height = (int(SHORT * side / min(picture.size)) for side in picture.size)
    left, top = round((width - SIZE) / 2), round((height - SIZE) / 2)
    picture = picture.resize((width, height), Image.Resampling.{preprocess.interpolation.upper()})
    return np.asarray(picture.crop((left, top, left + SIZE, top + SIZE)))[None]

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        try:
            images = pixels(body)
        except Exception as error:  # of many kinds, by what the bytes are
            return self.send_error(400, f"{{len(body)}} bytes are neither a JPEG or PNG nor {{SIZE}} x {{SIZE}} x 3 a picture", str(error))
        best = [{{names[i]: float(row[i]) for i in np.argsort(-row)[:5]}} for row in np.asarray(model(images))]
        self.send_response(200); self.end_headers(); self.wfile.write(json.dumps(best).encode() + b"\\n")

http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
'''


def card(predictor: Predictor, form: Form, folded: int, accuracy: str, size: int) -> str:
    """The text of `README.md`."""
    model, preprocess = predictor.model, predictor.preprocess
    given = (
        "uint8 RGB"
        if form.pixels
        else f"float32, (pixels / 255 - {list(preprocess.mean)}) / {list(preprocess.std)}"
    )
    rows = {
        "network": f"{type(model).__name__}, {parameters(model):,} parameters",
        "multiply-accumulates": f"{multiply_accumulates(model, preprocess.size) / 1e6:,.1f} million an image",
        "classes": f"{len(predictor.classes):,}, in `{CLASSES}`",
        "accuracy": accuracy,
        "input": f"(N, {preprocess.size}, {preprocess.size}, {model.in_channels}) {given}; any N",
        "pictures": f"the short side resized to {preprocess.resize} ({preprocess.interpolation}), the middle {preprocess.size} x {preprocess.size}",
        "output": "(N, classes) float32 " + ("probabilities" if form.pixels else "logits"),
        "batch norms in kernels": f"{folded}",
        "kernels": "8 bits, by output channel" if form.int8 else str(jnp.dtype(model.param_dtype)),
        "devices": ", ".join(PLATFORMS),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    serve = (
        f"\n`python {SERVER} 8000` answers on this machine to `curl --data-binary @photo.jpg 127.0.0.1:8000`.\n"
        if form.pixels
        else ""
    )
    onnx = f"\n`{ONNX}` is the same program in ONNX.\n" if form.onnx else ""
    return f"""# {type(model).__name__} of {len(predictor.classes)} classes

| | |
|---|---|
{table}

`{PROGRAM}` ({size / 1e6:.1f} MB, weights included) needs jax and flatbuffers, and nothing else:

```python
import jax, numpy as np

model = jax.export.deserialize(open("{PROGRAM}", "rb").read())
answers = model.call(images)  # {given.partition(",")[0]}
```
{serve}{onnx}
`{WEIGHTS}` has the weights before anything was folded or rounded, in torchvision's and timm's naming.
"""
